"""What layers.py computes in a way of its own, against the plain way."""

import jax
import numpy as np
import pytest
from flax import nnx

from instancevg_jax.models import layers


@pytest.mark.parametrize("size", [(5, 7), (6, 2), (1, 4)])
def test_gradients_of_a_convolution(size):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *size, 3)).astype(np.float32)
    weight = rng.standard_normal((2, *size, 4)).astype(np.float32)
    graph, params = nnx.split(layers.Conv3x3(3, 4, rngs=nnx.Rngs(0)))

    def plain(params, x):
        axes = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, params["kernel"][...], (1, 1), "SAME", dimension_numbers=axes)

    def gradients(function):
        return jax.grad(lambda params, x: (function(params, x) * weight).sum(), argnums=(0, 1))(params, x)

    expected, actual = gradients(plain), gradients(lambda params, x: nnx.merge(graph, params)(x))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), actual, expected)
