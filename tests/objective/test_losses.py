"""The loss: against the original's outputs and terms, against float64 numpy, and where there is nothing to average."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instancevg_jax.boxes import xyxy_to_cxcywh
from instancevg_jax.config import LossConfig
from instancevg_jax.objective import losses
from instancevg_jax.objective.matching import match
from instancevg_jax.types import Outputs, Targets
from tests import oracle

SIZE = 64
CASES = {"f4_losses_tiny": 0.2, "f4_losses_tiny1_neg0": 0.0}  # and their weight of negative masks


@functools.cache
def compiled(negative_masks=0.2, auxiliary_weights="one"):
    """(total, terms, gradients, matches) of (outputs, targets), one compilation a shape."""
    config = LossConfig(negative_masks=negative_masks, auxiliary_weights=auxiliary_weights)

    def run(outputs, targets):
        matches = match(outputs, targets, config)
        with_gradient = jax.value_and_grad(losses.total_loss, has_aux=True)
        value, gradients = with_gradient(outputs, targets, config, matches)
        return *value, gradients, matches

    return jax.jit(run)


def stored_outputs(data):
    """The original's outputs. Its instance masks are stored as float16 only, so terms on them are not compared here."""
    return Outputs(
        class_logits=jnp.asarray(data["pred_outputs_class"]),
        boxes=jnp.asarray(data["pred_outputs_coord"]),
        mask_logits=jnp.asarray(data["pred_all_mask"], jnp.float32),
        global_mask_logits=jnp.asarray(data["pred_pred_seg"][:, 0]),
        existence_logits=jnp.asarray(data["pred_nt_logits"]),
        points=jnp.asarray(data["pred_points"]),
        point_map=jnp.asarray(data["pred_attn_map_query"][:, 0]),
    )


def stored_targets(data, padding=2):
    batch = data["pred_nt_target"].shape[0]
    counts = [len(data[f"target_boxes_s{i}_f64"]) for i in range(batch)]
    slots = max(counts) + padding
    boxes = np.zeros((batch, slots, 4), np.float32)
    masks = np.zeros((batch, slots, SIZE, SIZE), bool)
    for i, n in enumerate(counts):
        boxes[i, :n] = xyxy_to_cxcywh(data[f"target_boxes_s{i}_f64"].astype(np.float32) / np.float32(SIZE))
        masks[i, :n] = np.unpackbits(data[f"target_masks_s{i}"], axis=1).reshape(n, SIZE, SIZE)
    return Targets(
        boxes=jnp.asarray(boxes),
        valid=jnp.arange(slots) < jnp.asarray(counts)[:, None],
        masks=jnp.asarray(masks),
        mask=jnp.asarray(masks.any(1)),
    )


@pytest.mark.parametrize("name", CASES)
def test_terms_of_the_original(name):
    data = oracle.fixture(name)
    _, terms, *_ = compiled(CASES[name])(stored_outputs(data), stored_targets(data))
    want = {
        "class": data["term_detr_loss_class"],
        "boxes": data["term_detr_loss_bbox"] / 5,
        "giou": data["term_detr_loss_giou"] / 2,
        "global_dice": data["term_global_dice"],
        "global_bce": data["term_global_bce"],
        "point_map_dice": data["term_attnmap_dice"],
        "point_map_bce": data["term_attnmap_bce"],
        "no_target_ce": data["term_nt_ce"],
        "detection": data["loss_det"],
        "no_target": data["loss_label_nt"],
    }
    for layer in (0, 1):
        for ours, theirs in (("class", "class"), ("boxes", "bbox"), ("giou", "giou")):
            want[f"{ours}_{layer}"] = data[f"term_detr_loss_{theirs}_{layer}"]
    for term, value in want.items():
        np.testing.assert_allclose(terms[term], value, rtol=1e-5, err_msg=term)


@pytest.mark.parametrize("name", CASES)
def test_matched_indices_of_the_original(name):
    data = oracle.fixture(name)
    *_, matches = compiled(CASES[name])(stored_outputs(data), stored_targets(data))
    for k, layer in enumerate(("layer0", "layer1", "layerlast")):
        for i in range(4):
            query, target = data[f"match_{layer}_s{i}"]
            np.testing.assert_array_equal(np.flatnonzero(matches.matched[k, i]), np.sort(target))
            np.testing.assert_array_equal(matches.query_index[k, i, target], query)


def test_point_map_target_of_the_original():
    data = oracle.fixture("f4_losses_tiny")
    coarse = losses.resize_nearest(stored_targets(data).mask, (4, 4))
    np.testing.assert_array_equal(coarse, data["pred_attn_map_target"])


def test_nearest_resize_takes_the_floor():
    got = losses.resize_nearest(jnp.arange(35).reshape(1, 7, 5) % 3 == 0, (3, 2))
    want = (np.arange(35).reshape(7, 5) % 3 == 0)[[0, 2, 4]][:, [0, 2]]
    np.testing.assert_array_equal(got[0], want)


def random_case(counts, queries=3, slots=4, seed=0, size=8):
    rng = np.random.default_rng(seed)
    batch = len(counts)
    valid = np.arange(slots) < np.asarray(counts)[:, None]
    boxes = np.concatenate([0.3 + 0.4 * rng.random((batch, slots, 2)), 0.1 + 0.3 * rng.random((batch, slots, 2))], -1)
    masks = (rng.random((batch, slots, size, size)) < 0.4) & valid[..., None, None]
    outputs = Outputs(
        class_logits=rng.normal(size=(2, batch, queries, 2)),
        boxes=0.1 + 0.8 * rng.random((2, batch, queries, 4)),
        mask_logits=3 * rng.normal(size=(batch, queries, size, size)),
        global_mask_logits=3 * rng.normal(size=(batch, size, size)),
        existence_logits=rng.normal(size=(batch, 2)),
        points=rng.random((batch, queries, 2)),
        point_map=0.2 * rng.random((batch, 4, 4)),
    )
    targets = Targets(boxes=np.float32(boxes * valid[..., None]), valid=valid, masks=masks, mask=masks.any(1))
    return jax.tree.map(np.float32, outputs), targets


def test_instance_masks_equal_plain_numpy():
    outputs, targets = random_case([2, 0, 4, 1])
    _, terms, _, matches = compiled()(outputs, targets)
    found = {"positive": [], "negative": []}
    for b in range(4):
        owner = {int(q): t for t, q in enumerate(matches.query_index[-1, b]) if matches.matched[-1, b, t]}
        for q in range(3):
            x = np.asarray(outputs.mask_logits[b, q], np.float64)
            t = np.asarray(targets.masks[b, owner[q]], np.float64) if q in owner else np.zeros_like(x)
            p = 1 / (1 + np.exp(-x))
            dice = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
            bce = -(t * np.log(p) + (1 - t) * np.log1p(-p)).mean()
            found["positive" if q in owner else "negative"].append((dice, bce))
    assert len(found["positive"]) == 2 + 0 + 3 + 1
    for kind, pairs in found.items():
        dice, bce = np.mean(pairs, axis=0)
        np.testing.assert_allclose(terms[f"{kind}_dice"], dice, rtol=1e-5)
        np.testing.assert_allclose(terms[f"{kind}_bce"], bce, rtol=1e-5)


def test_total_is_the_weighted_sum():
    outputs, targets = random_case([2, 0, 4, 1])
    for auxiliary, (c, b, g) in {"one": (1, 1, 1), "same": (1, 5, 2)}.items():
        total, t, *_ = compiled(auxiliary_weights=auxiliary)(outputs, targets)
        detection = t["class"] + 5 * t["boxes"] + 2 * t["giou"] + c * t["class_0"] + b * t["boxes_0"] + g * t["giou_0"]
        masks = t["positive_dice"] + t["positive_bce"] + 0.2 * (t["negative_dice"] + t["negative_bce"])
        masks += t["global_dice"] + t["global_bce"] + 0.1 * (t["point_map_dice"] + t["point_map_bce"])
        np.testing.assert_allclose(total, 0.1 * detection + masks + 0.2 * t["no_target_ce"], rtol=1e-6)


@pytest.mark.parametrize("counts", [[0, 0, 0, 0], [3, 3, 3, 3], [4, 4, 4, 4], [0, 4, 0, 4]], ids=str)
def test_a_mean_of_nothing_is_zero(counts):
    """No target at all, or no query left over: values and gradients stay finite, and the empty term is 0."""
    outputs, targets = random_case(counts)
    total, terms, gradients, _ = compiled()(outputs, targets)
    assert np.isfinite(total)
    assert all(np.isfinite(value) for value in terms.values())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    if sum(counts) == 0:
        for name in ("boxes", "giou", "boxes_0", "giou_0", "positive_dice", "positive_bce"):
            assert terms[name] == 0
        assert (gradients.boxes == 0).all()
    if min(counts) >= 3:
        assert terms["negative_dice"] == terms["negative_bce"] == 0


def test_large_logits_stay_finite():
    outputs, targets = random_case([2, 0, 4, 1])
    outputs = jax.tree.map(lambda x: np.asarray(1e4 * np.sign(x - np.mean(x)), np.float32), outputs)
    total, _, gradients, _ = compiled()(outputs, targets)
    assert np.isfinite(total)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_padding_changes_nothing():
    """Whatever stands in the rows of targets that are not valid, NaN included."""
    outputs, targets = random_case([2, 0, 4, 1])
    padded = ~targets.valid
    boxes = np.where(padded[..., None], np.float32(np.nan), targets.boxes)
    garbage = dataclasses.replace(targets, boxes=boxes, masks=targets.masks | padded[..., None, None])
    _, a, gradients, _ = compiled()(outputs, targets)
    _, b, other, _ = compiled()(outputs, garbage)
    for x, y in zip(jax.tree.leaves((a, gradients)), jax.tree.leaves((b, other)), strict=True):
        np.testing.assert_array_equal(x, y)
