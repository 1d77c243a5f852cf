"""The optimizer and its schedule. Source: core/optimizer.py, core/scheduler.py and tools/train.py of the original."""

import difflib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from instancevg_jax.config import OptimConfig
from instancevg_jax.errors import InputError
from instancevg_jax.runtime.trees import flatten, path_name
from instancevg_jax.types import Array

BACKBONE = "backbone"  # its parameters learn at `backbone_scale` times the learning rate
FINAL_NORMS = ("vision_norm.", "text_norm.")  # the backbone's norms after its last block


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
        # the barriers keep XLA from computing moments twice, from the old ones, which it would copy instead of updating in place
        mu, nu = jax.lax.optimization_barrier(
            (
                jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates),
                jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, updates),
            )
        )
        nu_max = jax.lax.optimization_barrier(jax.tree.map(jnp.maximum, state.nu_max, nu))
        time = count.astype(jnp.float32)
        correction1, correction2 = 1 - b1**time, jnp.sqrt(1 - b2**time)
        updates = jax.tree.map(lambda m, v: (m / correction1) / (jnp.sqrt(v) / correction2 + eps), mu, nu_max)
        return updates, AmsgradState(count=count, mu=mu, nu=nu, nu_max=nu_max)

    return optax.GradientTransformation(init, update)


def scale_by_muon(config: OptimConfig) -> optax.GradientTransformation:
    """Muon for the matrices of linear layers, Adam with Nesterov momentum for all other parameters.

    The updates of both have the same RMS, 0.2. Source: Jordan 2024, github.com/KellerJordan/Muon; scaled as in Liu et al. 2025,
    arXiv:2502.16982. Raises InputError for AMSGrad.
    """
    if config.amsgrad:
        raise InputError("optim.amsgrad is True; 'muon' has no AMSGrad, so set optim.amsgrad=False")

    def matrices(params):
        matrix = optax.contrib.MuonDimensionNumbers()
        return _with_names(lambda name, p: matrix if name.endswith("kernel") and p.ndim == 2 else None, params)

    return optax.contrib.muon(
        learning_rate=-1.0,  # only the direction; rate, scales and decay are applied later, as for Adam
        eps=config.eps,
        adam_b1=config.b1,
        adam_b2=config.b2,
        muon_weight_dimension_numbers=matrices,
        consistent_rms=0.2,
    )


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """torch's clip_grad_norm_: scale by max_norm / (norm + 1e-6) where that is below 1.

    `update` takes the norm as `norm` where it is known already.
    """

    def update(updates, state, params=None, *, norm: Array | None = None, **extra_args):
        del params, extra_args
        known = optax.tree.norm(updates) if norm is None else norm
        scale = jnp.minimum(1.0, max_norm / (known + 1e-6))
        return jax.tree.map(lambda g: g * scale, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def schedule(config: OptimConfig, steps_per_epoch: int, num_steps: int) -> Callable[[Array], Array]:
    """Step -> learning rate of the head."""
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(
            0.0, config.learning_rate, config.warmup_steps, max(num_steps, config.warmup_steps + 1)
        )
    if config.schedule == "step":
        warmup, decays, length = config.warmup_epochs, config.decay_epochs, steps_per_epoch
    else:
        warmup, decays, length = config.warmup_steps, config.decay_steps, 1

    def by_period(step):
        period = step // length
        warm = (period + 1) / (warmup + 1)
        passed = sum((period + 1 >= d for d in decays), start=jnp.zeros((), jnp.int32))
        return config.learning_rate * jnp.where(period < warmup, warm, config.decay_factor**passed)

    return by_period


def make_optimizer(
    config: OptimConfig, params, *, steps_per_epoch: int, num_steps: int
) -> optax.GradientTransformationExtraArgs:
    """Clipping, the direction (Adam's or Muon's), and the schedule; every update is scaled by `learning_rate_scales`.

    `params` is the tree to train. Weight decay (AdamW, Muon) does not apply to vectors, i.e. norms and biases. Frozen parameters
    have no moments, no updates and no decay, and their gradients do not count for clipping. Raises InputError for options
    that the optimizer does not have, and for prefixes in `optim.frozen` that freeze nothing or everything.
    """
    if config.name == "adam" and config.weight_decay:
        raise InputError(
            f"optim.weight_decay is {config.weight_decay}; 'adam' has no weight decay, so use optim.name='adamw' or 'muon'"
        )
    if config.name == "muon":
        direction = scale_by_muon(config)
    elif config.amsgrad:
        direction = scale_by_torch_amsgrad(config.b1, config.b2, config.eps)
    else:
        direction = optax.scale_by_adam(config.b1, config.b2, config.eps)
    scales = learning_rate_scales(config, params)
    optimizer = optax.chain(
        clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        direction,
        optax.add_decayed_weights(config.weight_decay, mask=lambda tree: jax.tree.map(lambda p: p.ndim > 1, tree)),
        optax.stateless(lambda updates, _: _with_names(lambda name, u: u * scales[name], updates)),
        optax.scale_by_learning_rate(schedule(config, steps_per_epoch, num_steps)),
    )
    if not config.frozen:
        return optax.with_extra_args_support(optimizer)
    check_frozen(config.frozen, params)
    labels = _with_names(lambda name, _: is_frozen(name, config.frozen), params)
    return optax.partition({False: optimizer, True: optax.set_to_zero()}, labels)


def learning_rate_scales(config: OptimConfig, params) -> dict[str, float]:
    """Dotted name -> factor of the parameter's learning rate: 1 in the head, `backbone_scale` and `layer_decay` in the backbone.

    With `layer_decay` d, the last of n blocks learns at d times the backbone's rate, the first at d^n, the embeddings at
    d^(n + 1), and the norms after the last block at 1. Source: Bao et al. 2022, arXiv:2106.08254 (BEiT), run_class_finetuning.py.
    """
    depth = len(params.get(BACKBONE, {}).get("blocks", ()))

    def scale(name: str) -> float:
        part, _, rest = name.partition(".")
        if part != BACKBONE:
            return 1.0
        if rest.startswith("blocks."):
            below_end = depth - int(rest.split(".")[1])
        else:
            below_end = 0 if rest.startswith(FINAL_NORMS) else depth + 1
        return config.backbone_scale * config.layer_decay**below_end

    return {name: scale(name) for name in flatten(params)}


def stop_frozen(params, prefixes: Sequence[str]):
    """The parameters, with gradients of frozen ones stopped: they are 0 and not computed."""
    return _with_names(lambda name, p: jax.lax.stop_gradient(p) if is_frozen(name, prefixes) else p, params)


def is_frozen(name: str, prefixes: Sequence[str]) -> bool:
    """Whether a dotted name is one of the prefixes or lies below it."""
    return any(f"{name}.".startswith(f"{prefix}.") for prefix in prefixes)


def check_frozen(prefixes: Sequence[str], params) -> None:
    """Raise InputError for a prefix that freezes nothing, naming the most similar names, and if nothing is left to train."""
    names = flatten(params)
    for prefix in prefixes:
        if not any(is_frozen(name, [prefix]) for name in names):
            beginnings = {name.rsplit(".", cut)[0] for name in names for cut in range(name.count(".") + 1)}
            near = difflib.get_close_matches(prefix, sorted(beginnings), n=3, cutoff=0.3)
            raise InputError(f"optim.frozen: no parameter is below {prefix!r}; the nearest names are {', '.join(near)}")
    if all(is_frozen(name, prefixes) for name in names):
        raise InputError(f"optim.frozen is {tuple(prefixes)}: nothing is left to train")


def _with_names(function: Callable[[str, Any], Any], params):
    """The tree with function(dotted name, leaf) for every leaf."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: function(path_name(path), leaf), params)
