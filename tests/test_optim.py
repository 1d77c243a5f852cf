"""The optimizer against torch's numbers (F5), and the schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from instancevg_jax.config import OptimConfig
from instancevg_jax.errors import InputError
from instancevg_jax.optim import make_optimizer, scale_by_torch_amsgrad, schedule
from tests import oracle

NAMES = ("vis_enc.a", "vis_enc.b", "head.c", "head.d", "head.never", "head.sometimes")
GRADIENT_SCALES = (1, 0.01, 5, 1e-4, 0.3, 1e-7, 2, 0.1)


def test_adam_with_amsgrad_and_groups_as_torch():
    """Eight given gradients, clipped: parameters after each step.

    "head.sometimes" has no gradient in every third step, where torch leaves its moments as they are; a gradient is never missing in
    JAX, so that parameter only takes part in the clipping.
    """
    expected = oracle.fixture("f5_optim_only")
    recipe = oracle.recipe()
    params = {"backbone": {}, "head": {}}
    place = {name: ("backbone" if name.startswith("vis_enc") else "head", name) for name in NAMES}
    for name, (group, key) in place.items():
        params[group][key] = jnp.asarray(expected[f"p0::{name}"])
    config = OptimConfig(warmup_epochs=2, decay_epochs=(5, 7))
    optimizer = make_optimizer(config, params, steps_per_epoch=1, num_steps=8)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for step, scale in enumerate(GRADIENT_SCALES):
        grads = {"backbone": {}, "head": {}}
        for name, (group, key) in place.items():
            grad = recipe._rng(f"{name}.{step}", 901).standard_normal(params[group][key].shape) * scale
            if name == "head.d":
                grad[0] = 0
            if name == "head.never" or (name == "head.sometimes" and step % 3 == 0):
                grad[:] = 0
            grads[group][key] = jnp.asarray(grad, jnp.float32)
        norm = optax.tree.norm(grads)
        np.testing.assert_allclose(norm, expected["grad_norms"][step], rtol=1e-6)
        updates, state = update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        for name, (group, key) in place.items():
            if name == "head.sometimes":
                continue
            np.testing.assert_allclose(params[group][key], expected[f"p{step + 1}::{name}"], rtol=0, atol=1e-6)


def test_schedule_by_epoch():
    """Warm-up over the first epochs, then the decay, which bites one epoch before its number (counted from 0)."""
    rate = schedule(OptimConfig(warmup_epochs=3, decay_epochs=(15,)), steps_per_epoch=10, num_steps=200)
    told = [float(rate(jnp.int32(10 * epoch + 9))) / 5e-4 for epoch in (0, 1, 2, 3, 13, 14, 19)]
    np.testing.assert_allclose(told, [0.25, 0.5, 0.75, 1, 1, 0.1, 0.1], rtol=1e-6)


def test_amsgrad_keeps_the_largest_second_moment():
    transform = scale_by_torch_amsgrad(0.9, 0.98, 1e-9)
    state = transform.init({"w": jnp.zeros(1)})
    _, state = transform.update({"w": jnp.full(1, 10.0)}, state)
    largest = state.nu_max["w"]
    _, state = transform.update({"w": jnp.full(1, 1e-3)}, state)
    assert state.nu["w"] < largest
    assert state.nu_max["w"] == largest


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (OptimConfig(name="sgd"), "optim.name is 'sgd'"),
        (OptimConfig(schedule="exp"), "optim.schedule is 'exp'"),
        (OptimConfig(weight_decay=0.1), "weight_decay needs optim.name='adamw'"),
    ],
)
def test_bad_settings(config, says):
    with pytest.raises(InputError, match=says):
        make_optimizer(config, {"head": {"w": jnp.zeros(1)}}, steps_per_epoch=1, num_steps=1)
