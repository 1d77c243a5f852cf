"""models/fast.py against plain code and autodiff, in float64; and what becomes of bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instancevg_jax.models import fast

EPS = 1e-5


def plain_norm(x, scale, bias, axis=-1):
    normalized = (x - x.mean(axis, keepdims=True)) / jnp.sqrt(x.var(axis, keepdims=True) + EPS)
    return normalized * scale + bias


def plain_attention(query, key, value, mask):
    logits = jnp.einsum("bqnc,bsnc->bnqs", query, key) / np.sqrt(query.shape[-1])
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], logits, -jnp.inf))
    return jnp.einsum("bnqs,bsnc->bqnc", weights, value)


def plain_conv(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


MASK = np.arange(7) < np.array([[7], [4]])
NORM = [(6, 5), (5,), (5,)]
CASES = {  # fast, plain, shapes of the arguments
    "gelu": (fast.gelu, lambda x: jax.nn.gelu(x, approximate=False), [(40,)]),
    "layer_norm": (lambda *a: fast.layer_norm(*a, EPS), plain_norm, NORM),
    "gelu_layer_norm": (
        lambda *a: fast.gelu_layer_norm(*a, EPS),
        lambda x, *a: plain_norm(jax.nn.gelu(x, approximate=False), *a),
        NORM,
    ),
    "batch_norm": (lambda *a: fast.batch_norm(*a, EPS)[0], lambda *a: plain_norm(*a, axis=0), NORM),
    "attention": (
        lambda *a: fast.attention(*a, MASK),
        lambda *a: plain_attention(*a, MASK),
        [(2, 5, 3, 4), (2, 7, 3, 4), (2, 7, 3, 4)],
    ),
    "conv3x3": (fast.conv3x3, plain_conv, [(2, 5, 7, 3), (3, 3, 3, 4)]),
    "conv3x3, one row": (fast.conv3x3, plain_conv, [(2, 1, 4, 3), (3, 3, 3, 4)]),
}


def value_and_gradients(function, arguments, cotangent):
    value, pull_back = jax.vjp(function, *arguments)
    return value, *pull_back(cotangent.astype(value.dtype))


@pytest.mark.parametrize("name", CASES)
def test_equals_plain_autodiff(name):
    fast_function, plain, shapes = CASES[name]
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        arguments = [jnp.asarray(2 * rng.standard_normal(shape)) for shape in shapes]
        cotangent = jnp.asarray(rng.standard_normal(plain(*arguments).shape))
        expected = value_and_gradients(plain, arguments, cotangent)
        actual = jax.jit(lambda *a: value_and_gradients(fast_function, a, cotangent))(*arguments)
        for a, b in zip(actual, expected, strict=True):
            assert a.dtype == jnp.float64
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_in_and_out(name):
    """Close to float32 on the same numbers; scales and biases, parameters in float32, get float32 gradients."""
    fast_function, _, shapes = CASES[name]
    rng = np.random.default_rng(1)
    half = [jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for shape in shapes]
    half = [x.astype(jnp.float32) if "norm" in name and i else x for i, x in enumerate(half)]
    full = [x.astype(jnp.float32) for x in half]
    cotangent = jnp.asarray(rng.standard_normal(fast_function(*half).shape), jnp.bfloat16)
    actual = jax.jit(lambda *a: value_and_gradients(fast_function, a, cotangent))(*half)
    expected = value_and_gradients(fast_function, full, cotangent)
    assert [x.dtype for x in actual] == [half[0].dtype, *(x.dtype for x in half)]
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a.astype(np.float32), b, rtol=0.03, atol=0.03 * float(abs(b).max()))


def test_attention_of_accelerators_is_the_same():
    rng = np.random.default_rng(2)
    arguments = [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in CASES["attention"][2]]
    expected = fast._attention_cpu(*arguments, MASK)
    np.testing.assert_allclose(fast._attention_accelerator(*arguments, MASK), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["layer_norm", "gelu_layer_norm", "batch_norm", "attention"])
def test_only_inputs_and_statistics_are_kept(name):
    """What the backward pass holds on to is hardly more than the arguments and the result."""
    function, _, _ = CASES[name]
    big = {"attention": [(2, 64, 3, 4)] * 3}.get(name, [(512, 64), (64,), (64,)])
    if name == "attention":
        mask = np.ones((2, 64), bool)
        function = lambda *a: fast.attention(*a, mask)  # noqa: E731
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in big]
    kept = jax.eval_shape(lambda *a: jax.vjp(function, *a)[1], *arguments)
    size = sum(leaf.size for leaf in jax.tree.leaves(kept))
    allowed = sum(np.prod(shape) for shape in big)
    allowed += 2 * 64 * 3 * 4 + 128 if name == "attention" else 3 * 512
    assert size <= allowed


def test_gelu_far_from_zero():
    x = jnp.array([-200.0, -30.0, 0.0, 30.0, 200.0])
    np.testing.assert_array_equal(fast.gelu(x), [0, 0, 0, 30, 200])
    np.testing.assert_array_equal(jax.grad(lambda x: fast.gelu(x).sum())(x), [0, 0, 0.5, 1, 1])
