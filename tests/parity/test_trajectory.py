"""F5: learning rates of the official configs, and five whole training steps against the original's."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from instancevg_jax.config import Config, OptimConfig, TrainConfig
from instancevg_jax.runtime import sharding
from instancevg_jax.training import train_state
from instancevg_jax.training.optim import make_optimizer, schedule
from instancevg_jax.types import Batch, Targets
from tests import oracle
from tests.parity import models

COUNTS = (3, 1, 0, 12)  # objects of each record


@pytest.mark.parametrize(
    ("table", "config"),
    [("grefcoco", "grefcoco"), ("refcoco_base", "refcoco"), ("refzom", "refzom"), ("rrefcoco", "rrefcoco")],
)
def test_learning_rates_of_every_epoch(table, config):
    expected = oracle.fixture("f5_optim")[f"lrtable_{table}_f64"]
    optim = importlib.import_module(f"configs.{config}").get_config().optim
    rate = schedule(optim, steps_per_epoch=7, num_steps=7 * len(expected))
    for epoch, (backbone, _, head) in enumerate(expected):
        for step in (7 * epoch, 7 * epoch + 6):
            assert float(rate(jnp.int32(step))) == pytest.approx(head, rel=1e-6)
            assert float(rate(jnp.int32(step))) * optim.backbone_scale == pytest.approx(backbone, rel=1e-6)


def batch(step: int) -> Batch:
    """The fixture's batch of a step."""
    seed = 500 + 20 * step
    recipe = oracle.recipe()
    images, token_ids, token_mask = models.inputs((seed + 1, 4, 64), (seed + 2, [6, 14, 50, 23], 50, 256))
    boxes, masks = np.zeros((4, 12, 4), np.float32), np.zeros((4, 12, 64, 64), bool)
    valid = np.arange(12) < np.array(COUNTS)[:, None]
    for i, count in enumerate(COUNTS):
        xyxy = recipe.make_boxes(seed + 10 * i, count, 64)
        masks[i, :count] = recipe.make_instance_masks(0, xyxy, 64)
        low, high = xyxy[:, :2] / 64, xyxy[:, 2:] / 64
        boxes[i, :count] = np.concatenate([(low + high) / 2, high - low], 1)
    targets = Targets(boxes=boxes, valid=valid, masks=masks, mask=masks.any(1))
    return Batch(images, token_ids, token_mask, targets, np.ones(4, np.float32), np.arange(4, dtype=np.int32))


@pytest.mark.slow
def test_five_steps_and_their_average():
    """Losses and gradient norm of each step within twice the floor: how far the original in float32 is from itself in
    float64, since rounding is amplified from step to step.
    """
    expected = oracle.fixture("f5_optim")
    config = Config(
        model=models.without_dropout(models.CONFIGS["tiny"]),
        optim=OptimConfig(warmup_epochs=1, decay_epochs=(4,)),
        train=TrainConfig(ema_decay=0.999),
    )
    model = models.load(config.model, "tiny")
    graph, params, stats = train_state.split_model(model)
    optimizer = make_optimizer(config.optim, params, steps_per_epoch=1, num_steps=5)
    mesh = sharding.make_mesh()
    state = train_state.create(params, stats, optimizer, config.train.ema_decay, mesh)
    step_fn = train_state.make_train_step(graph, config, optimizer, mesh, state)
    floors = oracle.fixture("f5_optim_fp64")["losses_absdiff"]
    for step in range(len(floors)):
        state, metrics = step_fn(state, sharding.shard_batch(batch(step), mesh))
        names = ("detection", "masks", "no_target", "loss", "grad_norm")
        actual = np.array([float(metrics[name]) for name in names])
        off = np.abs(actual - expected["losses"][step])
        assert (off <= 2 * floors[step] + 1e-6).all(), f"step {step}: {names} off by {off}, floors {floors[step]}"
    trained = nnx.merge(graph, state.params, state.stats)
    assert jax.tree.structure(state.ema["params"]) == jax.tree.structure(state.params)
    np.testing.assert_allclose(
        trained.class_head.bias[...], expected["step5::head.class_embed.0.bias"], rtol=0, atol=2e-5
    )
    averaged = state.ema["params"]["class_head"]["bias"]
    np.testing.assert_allclose(averaged, expected["ema::head.class_embed.0.bias"], rtol=0, atol=2e-5)
