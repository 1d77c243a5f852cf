"""The optimizer against torch's numbers (F5), and the schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from instancevg_jax.config import OptimConfig
from instancevg_jax.errors import InputError
from instancevg_jax.training.optim import (
    learning_rate_scales,
    make_optimizer,
    scale_by_torch_amsgrad,
    schedule,
    stop_frozen,
)
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
    factors = [float(rate(jnp.int32(10 * epoch + 9))) / 5e-4 for epoch in (0, 1, 2, 3, 13, 14, 19)]
    np.testing.assert_allclose(factors, [0.25, 0.5, 0.75, 1, 1, 0.1, 0.1], rtol=1e-6)


def test_schedule_by_step():
    """The same rule with steps for epochs: nothing depends on the data set's size."""
    config = OptimConfig(schedule="piecewise", warmup_steps=3, decay_steps=(15, 18), decay_factor=0.5)
    rate = schedule(config, steps_per_epoch=1000, num_steps=20)
    factors = [float(rate(jnp.int32(step))) / 5e-4 for step in (0, 1, 2, 3, 13, 14, 17, 19)]
    np.testing.assert_allclose(factors, [0.25, 0.5, 0.75, 1, 1, 0.5, 0.25, 0.25], rtol=1e-6)


def tree() -> dict:
    """Parameters named as the model's, all ones."""
    block = {"text": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    backbone = {
        "patch_embed": {"kernel": jnp.ones((2, 2))},
        "blocks": {0: block, 1: block},
        "text_norm": {"scale": jnp.ones(2)},
    }
    return {"backbone": backbone, "head": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}


def updated(config: OptimConfig, params: dict, steps: int = 2) -> dict:
    """The parameters after equal gradients of 1."""
    optimizer = make_optimizer(config, params, steps_per_epoch=1, num_steps=steps)
    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_layers_learn_at_decaying_rates():
    config = OptimConfig(backbone_scale=0.1, layer_decay=0.5)
    scales = learning_rate_scales(config, tree())
    assert scales["head.kernel"] == 1
    assert scales["backbone.text_norm.scale"] == pytest.approx(0.1)
    assert scales["backbone.blocks.1.text.bias"] == pytest.approx(0.05)
    assert scales["backbone.blocks.0.text.kernel"] == pytest.approx(0.025)
    assert scales["backbone.patch_embed.kernel"] == pytest.approx(0.0125)
    moved = jax.tree.map(lambda p: float(p.ravel()[0]), updated(config, jax.tree.map(jnp.zeros_like, tree())))
    assert moved["backbone"]["blocks"][0]["text"]["kernel"] == pytest.approx(0.025 * moved["head"]["kernel"])


def test_frozen_parameters_do_not_change_at_all():
    """No update and no weight decay, no moments, and no part in the norm that is clipped."""
    config = OptimConfig(name="adamw", weight_decay=0.1, clip_norm=1.0, frozen=("backbone.blocks.1", "head.bias"))
    after = updated(config, tree())
    np.testing.assert_array_equal(after["backbone"]["blocks"][1]["text"]["kernel"], 1)
    np.testing.assert_array_equal(after["head"]["bias"], 1)
    assert (after["backbone"]["blocks"][0]["text"]["kernel"] < 1).all()
    assert (after["head"]["kernel"] < 1).all()

    optimizer = make_optimizer(config, tree(), steps_per_epoch=1, num_steps=1)
    moments = sum(leaf.size for leaf in jax.tree.leaves(optimizer.init(tree())) if leaf.ndim)
    assert moments == 3 * (4 + 4 + 2 + 2 + 4)  # three of AMSGrad for what is trained

    rest = {"head": {"kernel": jnp.ones((2, 2))}}
    with_frozen = updated(OptimConfig(clip_norm=0.1, frozen=("backbone", "head.bias"), eps=1.0), tree())
    alone = updated(OptimConfig(clip_norm=0.1, eps=1.0), rest)
    np.testing.assert_array_equal(with_frozen["head"]["kernel"], alone["head"]["kernel"])


def test_frozen_parameters_have_no_gradient():
    def loss(params):
        return sum(leaf.sum() for leaf in jax.tree.leaves(stop_frozen(params, ("backbone",))))

    grads = jax.grad(loss)(tree())
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads["backbone"]))
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(grads["head"]))


def test_amsgrad_keeps_the_largest_second_moment():
    transform = scale_by_torch_amsgrad(0.9, 0.98, 1e-9)
    state = transform.init({"w": jnp.zeros(1)})
    _, state = transform.update({"w": jnp.full(1, 10.0)}, state)
    largest = state.nu_max["w"]
    _, state = transform.update({"w": jnp.full(1, 1e-3)}, state)
    assert state.nu["w"] < largest
    assert state.nu_max["w"] == largest


def test_muon_moves_matrices_along_every_direction_alike_and_the_rest_as_adam():
    rng = np.random.default_rng(0)
    shapes = {
        "backbone": {"fc": {"kernel": (8, 12), "bias": (12,)}},
        "head": {"table": (5, 4), "conv.kernel": (3, 3, 2, 2)},
    }
    params = jax.tree.map(jnp.zeros, shapes, is_leaf=lambda x: isinstance(x, tuple))
    grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)
    config = OptimConfig(
        name="muon", backbone_scale=0.5, amsgrad=False, clip_norm=0.0, schedule="piecewise", learning_rate=1.0
    )
    optimizer = make_optimizer(config, params, steps_per_epoch=1, num_steps=8)
    updates = jax.jit(optimizer.update)(grads, optimizer.init(params), params)[0]
    kernel = updates["backbone"]["fc"].pop("kernel")
    assert jnp.vdot(kernel, grads["backbone"]["fc"].pop("kernel")) < 0
    values = jnp.linalg.svd(kernel, compute_uv=False) / (0.5 * 0.2 * np.sqrt(12))
    np.testing.assert_allclose(values, 1, atol=0.35)  # five Newton-Schulz steps are not exact
    # a first step of Adam is as large for every element
    for group in ("backbone", "head"):
        moved = jax.tree.map(lambda u, g: -u * jnp.sign(g), updates[group], grads[group])
        values = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(moved)])
        assert values[0] > 0
        np.testing.assert_allclose(values, values[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (OptimConfig(name="muon"), "optim.amsgrad is True; 'muon' has no AMSGrad"),
        (OptimConfig(weight_decay=0.1), "optim.weight_decay is 0.1; 'adam' has no weight decay"),
        (OptimConfig(frozen=("haed",)), "optim.frozen: no parameter is below 'haed'; the nearest names are head"),
        (OptimConfig(frozen=("hea",)), "optim.frozen: no parameter is below 'hea'"),
        (OptimConfig(frozen=("head",)), "nothing is left to train"),
    ],
)
def test_bad_settings(config, says):
    with pytest.raises(InputError, match=says):
        make_optimizer(config, {"head": {"w": jnp.zeros(1)}}, steps_per_epoch=1, num_steps=1)
