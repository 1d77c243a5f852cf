"""The training step's options against the plain step: recomputation, accumulation, bfloat16, frozen parts, averages."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from instancevg_jax.config import Config, OptimConfig, TrainConfig
from instancevg_jax.runtime import sharding
from instancevg_jax.training.optim import is_frozen
from instancevg_jax.types import Batch
from tests import small


def run(config: Config, batches: list[Batch]):
    return small.steps(config, sharding.make_mesh(), batches)


def assert_same(actual, expected, rtol: float, atol: float = 0.0) -> None:
    """Equal leaves, within rtol of each leaf's largest value."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        allowed = rtol * np.abs(b).max(initial=0) + atol
        worst = np.abs(np.asarray(a) - np.asarray(b)).max(initial=0)
        assert worst <= allowed, f"{jax.tree_util.keystr(path)}: off by {worst:.1e}, allowed {allowed:.1e}"


def plain_descent(**train) -> Config:
    """Moments that keep a gradient in proportion (a large eps), so that updates can be compared like gradients."""
    optim = OptimConfig(learning_rate=1e-3, clip_norm=0.0, eps=1.0, schedule="piecewise")
    return small.config(TrainConfig(batch_size=8, **train), optim)


@pytest.mark.parametrize("policy", ["blocks", pytest.param("dots", marks=pytest.mark.slow)])
def test_recomputing_changes_nothing(policy):
    """Dropout and drop path draw the same numbers the second time, and as without recomputation."""
    drops = {"drop_path": 0.2, "head_dropout": 0.2}
    expected = run(small.config(**drops), [small.batch(4)])
    actual = run(small.config(**drops, remat=policy), [small.batch(4)])
    assert actual[1][0]["loss"] == pytest.approx(expected[1][0]["loss"], rel=1e-6)
    assert actual[1][0]["grad_norm"] == pytest.approx(expected[1][0]["grad_norm"], rel=1e-5)


def repeated(times: int) -> Batch:
    """Two pictures and sentences, each `times` times in a row with other targets each time."""
    inputs, targets = small.batch(2), small.batch(2 * times, seed=1)
    again = jax.tree.map(lambda x: np.repeat(x, times, axis=0), inputs)
    return dataclasses.replace(again, targets=targets.targets)


def test_accumulation_equals_the_whole_batch():
    """Each part has the same pictures, so BatchNorm the same statistics, and other targets, in other numbers: the mean of the
    parts' losses would be wrong. Losses, gradients (seen in the first moments) and parameters are those of the whole.
    """
    batch = repeated(4)
    assert len({int(part) for part in batch.targets.valid.reshape(2, 4, -1).sum((0, 2))}) > 1
    whole, (expected,) = run(plain_descent(), [batch])
    parts, (actual,) = run(plain_descent(accumulate_steps=4), [batch])
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name] == pytest.approx(value, rel=1e-5), name
    assert_same(parts.opt_state, whole.opt_state, rtol=1e-5, atol=1e-8)
    assert_same(parts.params, whole.params, rtol=1e-6)


def test_accumulation_on_other_pictures_differs_by_batch_norm_alone():
    """The terms on outputs that no BatchNorm touches agree whatever the pictures; those on masks do not."""
    batch = small.batch(8)
    (expected,) = run(plain_descent(), [batch])[1]
    (actual,) = run(plain_descent(accumulate_steps=4), [batch])[1]
    for name in ("class", "boxes", "giou", "class_0", "boxes_0", "giou_0", "point_map_dice", "point_map_bce"):
        assert actual[name] == pytest.approx(expected[name], rel=1e-5), name
    assert actual["global_bce"] != pytest.approx(expected["global_bce"], rel=1e-5)


def test_bfloat16_computes_in_it_and_answers_in_float32():
    """Outputs are float32 and near those of float32; blocks and feature maps are bfloat16."""
    expected = nnx.merge(*small.network(small.config()))
    model = nnx.merge(*small.network(small.config(compute_dtype="bfloat16")))
    batch = small.batch(4)
    inputs = batch.images, batch.token_ids, batch.token_mask
    shapes = jax.eval_shape(lambda: model.forward(*inputs, train=False))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes[0])} == {jnp.dtype("float32")}
    assert {shapes[1][name].dtype for name in ("text", "image", "queries", "states", "pixels")} == {
        jnp.dtype("bfloat16")
    }
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}
    half, full = jax.jit(lambda: (model(*inputs), expected(*inputs)))()
    np.testing.assert_allclose(half.point_map, full.point_map, atol=0.02)
    np.testing.assert_allclose(half.global_mask_logits, full.global_mask_logits, atol=0.1)


@pytest.mark.slow
def test_bfloat16_learns():
    """Five steps on one batch lower the loss as float32's do; parameters, moments and statistics stay float32."""
    batches = [small.batch(8)] * 5
    state, half = run(small.config(compute_dtype="bfloat16"), batches)
    _, full = run(small.config(), batches)
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.stats))} == {jnp.dtype("float32")}
    assert half[-1]["loss"] < half[0]["loss"]
    assert half[-1]["loss"] == pytest.approx(full[-1]["loss"], rel=0.02)


def test_frozen_parts_stay_in_the_step_and_in_the_average():
    frozen = ("backbone", "decoder.layers.0")
    optim = OptimConfig(name="adamw", weight_decay=0.1, learning_rate=1e-3, frozen=frozen, schedule="piecewise")
    config = small.config(TrainConfig(batch_size=8, ema_decay=0.9), optim)
    before = small.network(config)[1]
    state, _ = run(config, [small.batch(8), small.batch(8, 1)])
    for tree in (state.params, state.ema["params"]):
        pairs = zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(before), strict=True)
        for (path, after), first in pairs:
            name = ".".join(str(entry.key) for entry in path)
            if is_frozen(name, frozen):
                np.testing.assert_array_equal(after, first, err_msg=name)
    assert not np.array_equal(
        state.params["decoder"]["layers"][1]["mlp"]["fc1"]["kernel"],
        before["decoder"]["layers"][1]["mlp"]["fc1"]["kernel"],
    )
