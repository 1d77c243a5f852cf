"""The training state, one pytree of plain dicts, and the jitted step that updates it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct
from jax.sharding import Mesh

from instancevg_jax.config import Config
from instancevg_jax.models.instancevg import InstanceVG
from instancevg_jax.objective.losses import Counts, count, total_loss
from instancevg_jax.runtime import sharding
from instancevg_jax.training import optim
from instancevg_jax.types import Array, Batch

Step = Callable[["TrainState", Batch], tuple["TrainState", dict[str, Array]]]


@struct.dataclass
class TrainState:
    """Everything that a step changes. It holds no random keys: each step derives its own from the run's seed and `step`."""

    step: Array  # [] int32, optimizer steps taken
    params: Any
    stats: Any  # BatchNorm's running statistics
    opt_state: Any
    ema: Any  # {"params", "stats"} averaged over steps, or None where train.ema_decay is 0


def split_model(model: InstanceVG) -> tuple[Any, Any, Any]:
    """The static graph, the parameters and the BatchNorm statistics (nested dicts) of a model."""
    graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graph, nnx.to_pure_dict(params), nnx.to_pure_dict(stats)


def abstract(
    params: Any, stats: Any, optimizer: optax.GradientTransformationExtraArgs, ema_decay: float, mesh: Mesh
) -> TrainState:
    """Shapes, dtypes and shardings of the state; `params` and `stats` may be shapes themselves."""
    shapes = jax.eval_shape(functools.partial(_first, optimizer, ema_decay), params, stats)
    return jax.tree.map(
        lambda x, placed: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed),
        shapes,
        sharding.split_sharding(shapes, mesh),
    )


def create(
    params: Any, stats: Any, optimizer: optax.GradientTransformationExtraArgs, ema_decay: float, mesh: Mesh
) -> TrainState:
    """The state before the first step, sharded over the mesh. Moments and averages are created as shards."""
    shardings = sharding.split_sharding(abstract(params, stats, optimizer, ema_decay, mesh), mesh)
    first = jax.jit(functools.partial(_first, optimizer, ema_decay), out_shardings=shardings)
    return first(sharding.place(params, mesh), sharding.place(stats, mesh))


def _first(optimizer: optax.GradientTransformationExtraArgs, ema_decay: float, params: Any, stats: Any) -> TrainState:
    ema = jax.tree.map(jnp.copy, {"params": params, "stats": stats}) if ema_decay else None
    return TrainState(
        step=jnp.zeros((), jnp.int32), params=params, stats=stats, opt_state=optimizer.init(params), ema=ema
    )


def weights(state: TrainState) -> tuple[Any, Any]:
    """Parameters and statistics to evaluate with: the averaged ones if train.ema_decay is set."""
    return (state.params, state.stats) if state.ema is None else (state.ema["params"], state.ema["stats"])


def make_train_step(
    graph: Any, config: Config, optimizer: optax.GradientTransformationExtraArgs, mesh: Mesh, state: TrainState
) -> Step:
    """The jitted training step: (state, batch) -> (new state, metrics). It donates the state it is given.

    `state` (arrays or shapes) determines the shardings. Metrics are float32 scalars: `loss`, every term of `total_loss`,
    `grad_norm` (before clipping, without frozen parameters), and `bad`, which is 1 if the loss or the gradient is not finite or
    the loss exceeds `train.loss_limit`. A bad step changes nothing but the number of steps.
    """
    parts, decay = config.train.accumulate_steps, config.train.ema_decay
    limit = config.train.loss_limit or float("inf")
    gradients = _gradient_fn(graph, config)

    def update(state: TrainState, grads: Any, stats: Any, norm: Array) -> TrainState:
        state, grads = jax.lax.optimization_barrier(
            (state, grads)
        )  # nothing is computed before the loop, which takes memory
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, norm=norm)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            rate = jnp.minimum(decay, (state.step + 1) / (state.step + 10))
            new = {"params": params, "stats": stats}
            ema = jax.tree.map(lambda average, x: average + (1 - rate) * (x - average), ema, new)
        return TrainState(step=state.step, params=params, stats=stats, opt_state=opt_state, ema=ema)

    def step_fn(state: TrainState, batch: Batch):
        key = jax.random.fold_in(jax.random.key(config.train.seed), state.step)
        counts = count(batch.targets, config.model.num_queries, config.loss)
        if parts == 1:
            grads, stats, metrics = gradients(state.params, state.stats, batch, key, counts)
        else:
            pieces = sharding.split_batch(batch, parts, mesh)
            grads, stats, metrics = _accumulate(gradients, state.params, state.stats, pieces, key, counts)
        loss, norm = metrics["loss"], optax.tree.norm(grads)
        bad = ~(jnp.isfinite(loss) & jnp.isfinite(norm)) | (loss > limit)
        # a loop of one or no iteration rather than a choice between two states: XLA updates its state in place
        state = jax.lax.fori_loop(0, jnp.where(bad, 0, 1), lambda _, state: update(state, grads, stats, norm), state)
        metrics = {"grad_norm": norm, "bad": bad.astype(jnp.float32), **metrics}
        return dataclasses.replace(state, step=state.step + 1), metrics

    shardings = sharding.split_sharding(state, mesh)
    return jax.jit(
        step_fn,
        in_shardings=(shardings, sharding.batch_sharding(mesh)),
        out_shardings=(shardings, sharding.replicated(mesh)),
        donate_argnums=0,
    )


def make_loss_fn(graph: Any, config: Config) -> Callable[..., tuple[Array, tuple[Any, dict[str, Array]]]]:
    """The function (params, stats, batch, key, counts) -> (loss, (new statistics, the loss and its terms by name))."""
    random = config.model.drop_path > 0 or config.model.head_dropout > 0

    def loss_fn(params: Any, stats: Any, batch: Batch, key: Array, counts: Counts):
        model = nnx.merge(graph, optim.stop_frozen(params, config.optim.frozen), stats, copy=True)
        rngs = nnx.Rngs(dropout=key) if random else None
        outputs = model(batch.images, batch.token_ids, batch.token_mask, train=True, rngs=rngs)
        loss, terms = total_loss(outputs, batch.targets, config.loss, counts=counts)
        return loss, (nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)), {"loss": loss, **terms})

    return loss_fn


def _gradient_fn(graph: Any, config: Config) -> Callable[..., tuple[Any, Any, dict[str, Array]]]:
    """The function (params, stats, batch, key, counts) -> (gradients, new statistics, the loss and its terms by name)."""
    loss_fn = make_loss_fn(graph, config)

    def gradients(*arguments: Any):
        grads, (stats, metrics) = jax.grad(loss_fn, has_aux=True)(*arguments)
        return grads, stats, metrics

    return gradients


def _accumulate(
    gradients: Callable[..., tuple[Any, Any, dict[str, Array]]],
    params: Any,
    stats: Any,
    pieces: Batch,
    key: Array,
    counts: Counts,
) -> tuple[Any, Any, dict[str, Array]]:
    """The result of `gradients` for a batch, computed from its pieces [parts, B / parts, ...] one after the other.

    Losses and gradients are summed over the pieces; `counts` are those of the batch. BatchNorm normalizes each piece by the
    piece's own statistics, and its running statistics are updated once per piece, as when accumulating in torch.
    """

    def add(carry, piece):
        stats, sums, index = carry
        grads, stats, metrics = gradients(params, stats, piece, jax.random.fold_in(key, index), counts)
        return (stats, jax.tree.map(jnp.add, sums, (grads, metrics)), index + 1), None

    first = jax.tree.map(lambda x: x[0], pieces)
    shapes = jax.eval_shape(gradients, params, stats, first, key, counts)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes[0], shapes[2]))
    (stats, (grads, metrics), _), _ = jax.lax.scan(add, (stats, zeros, jnp.int32(0)), pieces)
    return grads, stats, metrics
