"""All that changes in training, as one pytree of plain dicts, and the jitted step that changes it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct
from jax.sharding import Mesh

from instancevg_jax import sharding
from instancevg_jax.config import Config
from instancevg_jax.losses import total_loss
from instancevg_jax.models.instancevg import InstanceVG
from instancevg_jax.types import Array, Batch

Step = Callable[["TrainState", Batch], tuple["TrainState", dict[str, Array]]]


@struct.dataclass
class TrainState:
    """Random numbers are not in here: each step derives its own from the run's seed and `step`."""

    step: Array  # [] int32, optimizer steps taken
    params: Any
    stats: Any  # BatchNorm's running statistics
    opt_state: Any
    ema: Any  # {"params", "stats"} averaged over steps, or None where train.ema_decay is 0


def split_model(model: InstanceVG) -> tuple[Any, Any, Any]:
    """The static graph, the parameters and the statistics (nested dicts) of a model."""
    graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graph, nnx.to_pure_dict(params), nnx.to_pure_dict(stats)


def create(params: Any, stats: Any, optimizer: optax.GradientTransformation, ema_decay: float) -> TrainState:
    """The state before the first step."""
    ema = jax.tree.map(jnp.copy, {"params": params, "stats": stats}) if ema_decay else None
    return TrainState(
        step=jnp.zeros((), jnp.int32), params=params, stats=stats, opt_state=optimizer.init(params), ema=ema
    )


def weights(state: TrainState) -> tuple[Any, Any]:
    """Parameters and statistics to evaluate with: the averaged ones where there are any."""
    return (state.params, state.stats) if state.ema is None else (state.ema["params"], state.ema["stats"])


def make_train_step(graph: Any, config: Config, optimizer: optax.GradientTransformation, mesh: Mesh) -> Step:
    """The jitted update. The state it is given is donated: use the one that comes back.

    Metrics are float32 scalars: `loss`, every term of `total_loss`, `grad_norm` before clipping, and `bad`: 1 where loss or
    gradient is not finite or `train.loss_limit` is passed. A bad step changes nothing but the number of steps.
    """
    seed, decay = config.train.seed, config.train.ema_decay
    limit = config.train.loss_limit or float("inf")
    random = config.model.drop_path > 0 or config.model.head_dropout > 0

    def loss_fn(params, stats, batch: Batch, key):
        model = nnx.merge(graph, params, stats, copy=True)
        rngs = nnx.Rngs(dropout=key) if random else None
        outputs = model(batch.images, batch.token_ids, batch.token_mask, train=True, rngs=rngs)
        loss, terms = total_loss(outputs, batch.targets, config.loss)
        return loss, (terms, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

    def step_fn(state: TrainState, batch: Batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (terms, stats)), grads = grad_fn(state.params, state.stats, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            rate = jnp.minimum(decay, (state.step + 1) / (state.step + 10))
            new = {"params": params, "stats": stats}
            ema = jax.tree.map(lambda average, x: rate * average + (1 - rate) * x, ema, new)
        norm = optax.tree.norm(grads)
        bad = ~(jnp.isfinite(loss) & jnp.isfinite(norm)) | (loss > limit)
        new = TrainState(step=state.step, params=params, stats=stats, opt_state=opt_state, ema=ema)
        state = jax.tree.map(lambda before, after: jnp.where(bad, before, after), state, new)
        metrics = {"loss": loss, "grad_norm": norm, "bad": bad.astype(jnp.float32), **terms}
        return dataclasses.replace(state, step=state.step + 1), metrics

    whole, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    return jax.jit(step_fn, in_shardings=(whole, split), out_shardings=(whole, whole), donate_argnums=0)
