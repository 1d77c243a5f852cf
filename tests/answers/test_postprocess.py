"""Post-processing against the original's in 13 settings, NMS, resizing, and the host's side."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instancevg_jax.answers.postprocess import (
    Decision,
    existence_probability,
    nms,
    postprocess,
    resize_levels,
    resize_mask,
    thresholds_passed,
    to_original_size,
)
from instancevg_jax.config import EvalConfig
from instancevg_jax.types import Outputs, Predictions
from tests import oracle

SETTINGS = [
    f"{merge}_rs{rescale}_nms{nms}" for merge in ("merge", "global", "instance") for rescale in (0, 1) for nms in (0, 1)
] + ["merge_rs1_nms0_nosw_t35_s5"]


def outputs_of_f6():
    data, recipe = oracle.fixture("f6_postprocess"), oracle.recipe()
    return Outputs(
        class_logits=data["pred_class"][None],
        boxes=data["pred_bbox"][None],
        mask_logits=np.float32(1.5 * recipe.smooth_field(601, (4, 10, 64, 64)) - 0.8),
        global_mask_logits=np.float32(1.5 * recipe.smooth_field(602, (4, 1, 64, 64)) - 0.3)[:, 0],
        existence_logits=data["nt_label"],
        points=np.full((4, 10, 2), 0.5, np.float32),
        point_map=np.zeros((4, 4, 4), np.float32),
    )


def config_of(setting):
    other = setting.endswith("nosw_t35_s5")
    return EvalConfig(
        mask_merge=setting.split("_")[0],
        nms_threshold=0.7 if "nms1" in setting else 0.0,
        score_weighted=not other,
        mask_threshold=0.35 if other else 0.5,
        score_threshold=0.5 if other else 0.7,
    )


@functools.cache
def answer(setting, protocol):
    """Device answers, cached over settings that differ in the host's rescaling only."""
    config = config_of(setting)
    return jax.tree.map(np.asarray, jax.jit(lambda o: postprocess(o, config, protocol))(outputs_of_f6()))


def unpack(bits, shape):
    return np.unpackbits(bits)[: np.prod(shape)].reshape(shape).astype(bool)


def near_threshold(threshold):
    """Pixels of the network's picture where rounding may decide. [B, H, W]"""
    outputs = outputs_of_f6()
    logits = np.concatenate([outputs.mask_logits, outputs.global_mask_logits[:, None]], axis=1)
    return (np.abs(1 / (1 + np.exp(-logits.astype(np.float64))) - threshold) < 1e-5).any(1)


@pytest.mark.parametrize("setting", SETTINGS)
def test_equals_the_original(setting):
    data = oracle.fixture("f6_postprocess")
    got = answer(setting.replace("_rs1_nms0_", "_rs0_nms0_").replace("rs1", "rs0"), "official")
    unsure = near_threshold(config_of(setting).mask_threshold)
    for i in range(4):
        stored = {k.split(f"::s{i}_")[1]: v for k, v in data.items() if k.startswith(f"{setting}::s{i}_")}
        height, width = data["ori_shape"][i] if "rs1" in setting else (64, 64)
        rows = got.scores[i] > 0
        boxes, scores = got.boxes_xyxy[i][rows], got.scores[i][rows]
        if "nms1" in setting:  # the original sorts these by score, and leaves their boxes in the network's pixels
            order = np.argsort(-scores, kind="stable")
            np.testing.assert_allclose(boxes[order], stored["filtered_boxes"], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(scores[order], stored["filtered_scores"], rtol=1e-5)
        else:
            scale = np.array([width, height, width, height]) / 64
            np.testing.assert_allclose(boxes * scale, stored["boxes"], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(scores, stored["scores"], rtol=1e-5)
        resize = functools.partial(resize_mask, height=int(height), width=int(width))
        sure = ~resize(unsure[i])
        assert sure.mean() > 0.99
        want = unpack(stored["mask_bits"], stored["mask_shape"])
        np.testing.assert_array_equal(resize(got.mask[i]) & sure, want & sure)
        np.testing.assert_allclose(1 - got.no_target_probability[i], stored["pred_nt"][0], rtol=1e-5)
        if "parts_bits" in stored:
            parts = unpack(stored["parts_bits"], stored["parts_shape"])
            np.testing.assert_array_equal(np.stack([resize(m) for m in got.masks[i]]) & sure, parts & sure)


def test_strict_gives_each_counted_query_its_own_mask():
    strict, official = answer("instance_rs0_nms0", "strict"), answer("instance_rs0_nms0", "official")
    own = (strict.masks & strict.keep[..., None, None]).any(1)
    np.testing.assert_array_equal(strict.mask, own)
    dropped = (strict.scores == 0).any(1)
    np.testing.assert_array_equal(dropped, [False, True, True, False])
    np.testing.assert_array_equal((official.mask != own).any((1, 2)) & ~dropped, False)
    assert (official.mask != own).any()


@pytest.mark.parametrize("setting", ["merge_rs0_nms0", "global_rs0_nms0", "instance_rs0_nms0", "instance_rs0_nms1"])
@pytest.mark.parametrize("protocol", ["official", "strict"])
def test_masks_of_many_thresholds_are_those_of_each(setting, protocol):
    """One threshold lies exactly on a query's score: it counts below it, and not at it."""
    config, outputs = config_of(setting), outputs_of_f6()
    on_a_score = float(np.sort(answer(setting, protocol).scores.ravel())[-3])
    thresholds = tuple(sorted([0.05, 0.2, 0.35, 0.5, 0.7, 0.95, on_a_score]))
    passed = np.asarray(thresholds_passed(outputs, config, thresholds, protocol))
    masks = [
        np.asarray(postprocess(outputs, dataclasses.replace(config, score_threshold=t), protocol).mask)
        for t in thresholds
    ]
    for i, mask in enumerate(masks):
        np.testing.assert_array_equal(passed > i, mask)
    assert setting.startswith("global") or len({mask.tobytes() for mask in masks}) > 3
    for i in (0, 3):
        np.testing.assert_array_equal(resize_levels(passed[i], 45, 77) > 3, resize_mask(masks[3][i], 45, 77))


def test_nms_of_the_original():
    data = oracle.fixture("f6_nms_resize")
    for threshold in (0.3, 0.5, 0.7):
        kept = nms(jnp.asarray(data["boxes"]), jnp.asarray(data["scores"]), jnp.ones(40, bool), threshold)
        np.testing.assert_array_equal(np.flatnonzero(kept), np.sort(data[f"keep_{int(10 * threshold)}"]))


def test_absent_boxes_neither_stay_nor_suppress():
    boxes = jnp.tile(jnp.array([0.0, 0, 4, 4]), (3, 1))
    kept = nms(boxes, jnp.array([0.9, 0.8, 0.7]), jnp.array([False, True, True]), 0.5)
    np.testing.assert_array_equal(kept, [False, True, False])


def test_resize_of_the_original():
    data = oracle.fixture("f6_nms_resize")
    small = unpack(data["mask64_bits"], (64, 64))
    for name in data:
        if found := re.fullmatch(r"resized_(\d+)x(\d+)_bits", name):
            height, width = map(int, found.groups())
            np.testing.assert_array_equal(resize_mask(small, height, width), unpack(data[name], (height, width)))
    large = unpack(data["mask427_bits"], (427, 640))
    np.testing.assert_array_equal(resize_mask(large, 320, 320), unpack(data["mask427_to_320_bits"], (320, 320)))


def test_existence_rules():
    logits = jnp.array([[2.0, 1.0], [-1.0, -3.0]])
    np.testing.assert_allclose(existence_probability(logits, "sigmoid"), 1 / (1 + np.exp([-2.0, 1.0])), rtol=1e-6)
    np.testing.assert_allclose(existence_probability(logits, "softmax"), 1 / (1 + np.exp([-1.0, -2.0])), rtol=1e-6)


def test_a_traced_decision_is_the_configs():
    """One program for every threshold, NMS threshold and mask merge; `top_k` keeps the best."""
    outputs = outputs_of_f6()
    run = jax.jit(lambda outputs, decision: postprocess(outputs, EvalConfig(), decision=decision))
    for setting in ("merge_rs0_nms0", "global_rs0_nms1", "instance_rs0_nms1"):
        got, want = run(outputs, Decision.of(config_of(setting))), answer(setting, "strict")
        jax.tree.map(np.testing.assert_array_equal, got, want)
    best = run(outputs, Decision.of(dataclasses.replace(config_of("instance_rs0_nms0"), score_threshold=0.0), top_k=2))
    scores = answer("instance_rs0_nms0", "strict").scores
    np.testing.assert_array_equal(-np.sort(-best.scores)[:, :2], -np.sort(-scores)[:, :2])
    assert (np.asarray(best.keep).sum(1) == 2).all()
    own = (np.asarray(best.masks) & np.asarray(best.keep)[..., None, None]).any(1)
    np.testing.assert_array_equal(best.mask, own)
    assert run._cache_size() == 1


def predictions_of(scores, keep):
    count = len(scores)
    masks = np.zeros((1, count, 4, 8), bool)
    masks[0, range(count), 0, range(count)] = True
    return Predictions(
        boxes_xyxy=np.tile(np.array([1, 1, 3, 2], np.float32), (1, count, 1)) * np.arange(1, count + 1)[:, None],
        scores=np.array([scores], np.float32),
        masks=masks,
        keep=np.array([keep]),
        mask=np.ones((1, 4, 8), bool),
        no_target_probability=np.array([0.25], np.float32),
        points_xy=np.tile(np.array([2, 1], np.float32), (1, count, 1)),
    )


def test_original_size_best_first():
    grounding = to_original_size(predictions_of([0.8, 0.1, 0.9], [True, False, True]), 0, height=8, width=8)
    np.testing.assert_allclose(grounding.scores, [0.9, 0.8])
    np.testing.assert_allclose(grounding.boxes_xyxy, [[3, 6, 9, 12], [1, 2, 3, 4]])
    np.testing.assert_allclose(grounding.points_xy, [[2, 2], [2, 2]])
    assert grounding.masks.shape == (2, 8, 8)
    np.testing.assert_array_equal(np.argwhere(grounding.masks[0]), [[0, 2], [1, 2]])
    assert grounding.mask.all()
    assert grounding.exists
    assert grounding.no_target_probability == 0.25


def test_nothing_is_meant():
    predictions = predictions_of([0.2, 0.3], [False, False])
    grounding = to_original_size(predictions, 0, height=5, width=7)
    assert not grounding.exists
    assert not grounding.mask.any()
    assert grounding.boxes_xyxy.shape == (0, 4)
    assert grounding.masks.shape == (0, 5, 7)
    always = to_original_size(predictions, 0, height=5, width=7, always_exists=True)
    np.testing.assert_allclose(always.scores, [0.3])
    assert always.mask.all()
