"""The optimizer and its schedule. Source: core/optimizer.py, core/scheduler.py and tools/train.py of the original."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from instancevg_jax.config import OptimConfig
from instancevg_jax.errors import InputError
from instancevg_jax.types import Array

BACKBONE = "backbone"  # the parameters that learn at `backbone_scale` times the rate


class AmsgradState(NamedTuple):
    """Moments of Adam with AMSGrad; every tree mirrors the parameters."""

    count: Array  # [] int32
    mu: Array  # first moment
    nu: Array  # second moment
    nu_max: Array  # largest second moment so far, before bias correction


def scale_by_torch_amsgrad(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam with AMSGrad as torch computes it: the maximum is taken before the bias correction (optax takes it after)."""

    def init(params):
        mu, nu, nu_max = (jax.tree.map(jnp.zeros_like, params) for _ in range(3))
        return AmsgradState(count=jnp.zeros((), jnp.int32), mu=mu, nu=nu, nu_max=nu_max)

    def update(updates, state, params=None):
        del params
        count = state.count + 1
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, updates)
        nu_max = jax.tree.map(jnp.maximum, state.nu_max, nu)
        time = count.astype(jnp.float32)
        correction1, correction2 = 1 - b1**time, jnp.sqrt(1 - b2**time)
        updates = jax.tree.map(lambda m, v: (m / correction1) / (jnp.sqrt(v) / correction2 + eps), mu, nu_max)
        return updates, AmsgradState(count=count, mu=mu, nu=nu, nu_max=nu_max)

    return optax.GradientTransformation(init, update)


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """torch's clip_grad_norm_: scale by max_norm / (norm + 1e-6) where that is below 1."""

    def update(updates, state, params=None):
        del params
        scale = jnp.minimum(1.0, max_norm / (optax.tree.norm(updates) + 1e-6))
        return jax.tree.map(lambda g: g * scale, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def schedule(config: OptimConfig, steps_per_epoch: int, num_steps: int) -> Callable[[Array], Array]:
    """Step -> learning rate of the head."""
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(
            0.0, config.learning_rate, config.warmup_steps, max(num_steps, config.warmup_steps + 1)
        )
    if config.schedule != "step":
        raise InputError(f"optim.schedule is {config.schedule!r}; expected 'step' or 'cosine'")

    def by_epoch(step):
        epoch = step // steps_per_epoch
        warm = (epoch + 1) / (config.warmup_epochs + 1)
        decays = sum((epoch + 1 >= e for e in config.decay_epochs), start=jnp.zeros((), jnp.int32))
        return config.learning_rate * jnp.where(epoch < config.warmup_epochs, warm, config.decay_factor**decays)

    return by_epoch


def make_optimizer(
    config: OptimConfig, params, *, steps_per_epoch: int, num_steps: int
) -> optax.GradientTransformation:
    """Clipping, Adam (or AdamW) and the schedule; the backbone's updates are scaled by `backbone_scale`.

    `params` is the tree to be trained; its top-level key tells backbone from head. Weight decay (AdamW) leaves vectors alone:
    norms, biases.
    """
    if config.name == "adam" and config.weight_decay:
        raise InputError("optim.weight_decay needs optim.name='adamw'; 'adam' has none, as the original's")
    if config.name not in ("adam", "adamw"):
        raise InputError(f"optim.name is {config.name!r}; expected 'adam' or 'adamw'")
    if config.amsgrad:
        adam = scale_by_torch_amsgrad(config.b1, config.b2, config.eps)
    else:
        adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    scales = jax.tree_util.tree_map_with_path(
        lambda path, _: config.backbone_scale if _key(path[0]) == BACKBONE else 1.0, params
    )
    return optax.chain(
        clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        adam,
        optax.add_decayed_weights(config.weight_decay, mask=jax.tree.map(lambda p: p.ndim > 1, params)),
        optax.stateless(lambda updates, _: jax.tree.map(lambda u, s: u * s, updates, scales)),
        optax.scale_by_learning_rate(schedule(config, steps_per_epoch, num_steps)),
    )


def _key(entry) -> str:
    return str(getattr(entry, "key", getattr(entry, "name", entry)))
