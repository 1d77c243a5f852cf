"""A network as small as the architecture allows, one random batch for it, and its training state on a mesh."""

from typing import Any

import jax
import numpy as np
from flax import nnx

from instancevg_jax.config import Config, ModelConfig, OptimConfig, TrainConfig
from instancevg_jax.models.instancevg import InstanceVG
from instancevg_jax.runtime import sharding
from instancevg_jax.training import train_state
from instancevg_jax.training.optim import make_optimizer
from instancevg_jax.types import Batch, Targets
from tests import quickly

SIZE, TOKENS, SLOTS = 32, 8, 4


def config(train: TrainConfig | None = None, optim: OptimConfig | None = None, **model: Any) -> Config:
    """AdamW at a constant rate, no dropout; `model` overrides fields of the network."""
    sizes = {
        "image_height": SIZE,
        "image_width": SIZE,
        "patch_size": 8,
        "vocab_size": 64,
        "max_tokens": TOKENS,
        "max_text_positions": 16,
        "width": 32,
        "depth": 2,
        "num_heads": 2,
        "mlp_dim": 128,
        "drop_path": 0.0,
        "head_width": 16,
        "num_queries": 4,
        "decoder_layers": 2,
        "decoder_heads": 2,
        "decoder_mlp_dim": 32,
        "query_mlp_dim": 16,
        "head_dropout": 0.0,
    }
    default = OptimConfig(
        name="adamw", learning_rate=1e-3, clip_norm=1.0, amsgrad=False, schedule="piecewise", eps=1e-6
    )
    return Config(
        model=ModelConfig(**(sizes | model)), optim=optim or default, train=train or TrainConfig(batch_size=8)
    )


def batch(size: int, seed: int = 0) -> Batch:
    """Noise, sentences of 3 to 8 tokens, and 0 to 4 targets a record, numpy."""
    rng = np.random.default_rng(seed)
    valid = np.arange(SLOTS) < np.arange(size)[:, None] % (SLOTS + 1)
    masks = (rng.random((size, SLOTS, SIZE, SIZE)) > 0.5) & valid[..., None, None]
    boxes = (rng.uniform(0.2, 0.6, (size, SLOTS, 4)) * valid[..., None]).astype(np.float32)
    return Batch(
        images=rng.standard_normal((size, SIZE, SIZE, 3)).astype(np.float32),
        token_ids=rng.integers(4, 64, (size, TOKENS)).astype(np.int32),
        token_mask=np.arange(TOKENS) < rng.integers(3, TOKENS + 1, (size, 1)),
        targets=Targets(boxes=boxes, valid=valid, masks=masks, mask=masks.any(1)),
        example_weight=np.ones(size, np.float32),
        item=np.arange(size, dtype=np.int32),
    )


def network(config: Config) -> tuple[Any, Any, Any]:
    """Graph, parameters and statistics: random ones, drawn by numpy since the model's own draws compile one by one."""
    graph, params, stats = train_state.split_model(nnx.eval_shape(lambda: InstanceVG(config.model, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)

    def draw(path, leaf) -> np.ndarray:
        ones = path[-1].key in ("scale", "variance")
        return np.ones(leaf.shape, np.float32) if ones else rng.normal(0, 0.1, leaf.shape).astype(np.float32)

    return graph, *(jax.tree_util.tree_map_with_path(draw, tree) for tree in (params, stats))


def start(config: Config, mesh: jax.sharding.Mesh) -> tuple[train_state.TrainState, train_state.Step]:
    """The state before the first step and the jitted step."""
    graph, params, stats = network(config)
    optimizer = make_optimizer(config.optim, params, steps_per_epoch=1, num_steps=1)
    state = train_state.create(params, stats, optimizer, config.train.ema_decay, mesh)
    return state, train_state.make_train_step(graph, config, optimizer, mesh, state)


def compiled(config: Config, mesh: jax.sharding.Mesh, batch: Batch) -> tuple[train_state.TrainState, Any]:
    """The state before the first step and the step, compiled."""
    state, step = start(config, mesh)
    return state, step.lower(state, sharding.shard_batch(batch, mesh)).compile(quickly.OPTIONS)


def steps(config: Config, mesh: jax.sharding.Mesh, batches: list[Batch]) -> tuple[train_state.TrainState, list[dict]]:
    """The state after a step on each batch, and each step's metrics as floats."""
    return walk(*compiled(config, mesh, batches[0]), mesh, batches)


def walk(
    state: train_state.TrainState, step: Any, mesh: jax.sharding.Mesh, batches: list[Batch]
) -> tuple[train_state.TrainState, list[dict]]:
    """The same from a state, by a compiled step."""
    told = []
    for one in batches:
        state, metrics = step(state, sharding.shard_batch(one, mesh))
        told.append({name: float(value) for name, value in metrics.items()})
    return state, told
