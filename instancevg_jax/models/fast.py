"""Operations with backward passes of their own, which save memory and time; outputs and gradients are those of plain autodiff.

Each keeps its inputs and a few statistics for the backward pass and computes the rest again. Where a faster way depends on the
platform, `jax.lax.platform_dependent` chooses it, so a program exported for another platform gets that platform's way.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


def wide_dtype(x: Array) -> jnp.dtype:
    """The dtype of sums, softmax, coordinates and outputs where activations have x's: float32 at least."""
    return jnp.promote_types(x.dtype, jnp.float32)


def wide(x: Array) -> Array:
    """x in its `wide_dtype`."""
    return x.astype(wide_dtype(x))


def _when_needed(backward: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A backward pass that computes nothing from what was saved before its gradient is there.

    XLA otherwise merges what a backward pass computes again with the forward pass, and keeps it.
    """

    def deferred(saved: Any, grad: Any) -> Any:
        return backward(*jax.lax.optimization_barrier((saved, grad)))

    return deferred


# --- GELU ---------------------------------------------------------------------------------------------------------------------


def _gelu(x: Array) -> Array:
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


def _gelu_slope(x: Array) -> Array:
    return 0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5))) + x * jnp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


@jax.custom_vjp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact GELU, through erf: XLA's erfc, which `jax.nn.gelu` uses, is several times slower on CPU."""
    return _gelu(wide(x)).astype(x.dtype)


gelu.defvjp(
    lambda x: (gelu(x), x), _when_needed(lambda x, grad: ((wide(grad) * _gelu_slope(wide(x))).astype(x.dtype),))
)


# --- normalization ------------------------------------------------------------------------------------------------------------


def _statistics(x: Array, axis: int, eps: float) -> tuple[Array, Array, Array]:
    """Mean, variance (biased) and 1 / standard deviation of a matrix along `axis`."""
    mean = x.mean(axis, keepdims=True)
    variance = jnp.square(x - mean).mean(axis, keepdims=True)
    return mean, variance, jax.lax.rsqrt(variance + eps)


def _norm_backward(
    x: Array, mean: Array, rstd: Array, scale: Array, grad: Array, axis: int
) -> tuple[Array, Array, Array]:
    """Gradients of x, scale and bias of (x - mean) * rstd * scale + bias; mean and rstd are functions of x."""
    normalized, grad = (x - mean) * rstd, wide(grad)
    inner = grad * scale
    along = inner.mean(axis, keepdims=True) + normalized * (inner * normalized).mean(axis, keepdims=True)
    return rstd * (inner - along), (grad * normalized).sum(0), grad.sum(0)


@jax.custom_vjp
def layer_norm(
    x: Float[Array, "n C"], scale: Float[Array, "C"], bias: Float[Array, "C"], eps: float
) -> Float[Array, "n C"]:
    """Layer normalization of rows, in x's dtype; statistics are float32 at least."""
    return _layer_norm_forward(x, scale, bias, eps)[0]


def _layer_norm_forward(x: Array, scale: Array, bias: Array, eps: float):
    mean, _, rstd = _statistics(wide(x), 1, eps)
    y = (wide(x) - mean) * rstd * scale + bias
    return y.astype(x.dtype), (x, mean, rstd, scale)


def _layer_norm_backward(saved: tuple[Array, ...], grad: Array) -> tuple[Array, Array, Array, None]:
    x, mean, rstd, scale = saved
    grad_x, grad_scale, grad_bias = _norm_backward(wide(x), mean, rstd, scale, grad, 1)
    return grad_x.astype(x.dtype), grad_scale, grad_bias, None


layer_norm.defvjp(_layer_norm_forward, _when_needed(_layer_norm_backward))


@jax.custom_vjp
def gelu_layer_norm(
    x: Float[Array, "n C"], scale: Float[Array, "C"], bias: Float[Array, "C"], eps: float
) -> Float[Array, "n C"]:
    """`layer_norm(gelu(x))`, of which only x is kept."""
    return _gelu_layer_norm_forward(x, scale, bias, eps)[0]


def _gelu_layer_norm_forward(x: Array, scale: Array, bias: Array, eps: float):
    y, (_, *statistics) = _layer_norm_forward(_gelu(wide(x)), scale, bias, eps)
    return y.astype(x.dtype), (x, *statistics)


def _gelu_layer_norm_backward(saved: tuple[Array, ...], grad: Array) -> tuple[Array, Array, Array, None]:
    x, mean, rstd, scale = saved
    grad_gelu, grad_scale, grad_bias = _norm_backward(_gelu(wide(x)), mean, rstd, scale, grad, 1)
    return (grad_gelu * _gelu_slope(wide(x))).astype(x.dtype), grad_scale, grad_bias, None


gelu_layer_norm.defvjp(_gelu_layer_norm_forward, _when_needed(_gelu_layer_norm_backward))


@jax.custom_vjp
def batch_norm(
    x: Float[Array, "n C"], scale: Float[Array, "C"], bias: Float[Array, "C"], eps: float
) -> tuple[Float[Array, "n C"], Float[Array, "C"], Float[Array, "C"]]:
    """Batch normalization by the batch's own statistics: the result, and mean and variance (biased) of each channel.

    No gradient flows through the returned statistics.
    """
    return _batch_norm_forward(x, scale, bias, eps)[0]


def _batch_norm_forward(x: Array, scale: Array, bias: Array, eps: float):
    mean, variance, rstd = _statistics(wide(x), 0, eps)
    y = (wide(x) - mean) * rstd * scale + bias
    return (y.astype(x.dtype), mean[0], variance[0]), (x, mean, rstd, scale)


def _batch_norm_backward(saved: tuple[Array, ...], grads: tuple[Array, Array, Array]):
    x, mean, rstd, scale = saved
    grad_x, grad_scale, grad_bias = _norm_backward(wide(x), mean, rstd, scale, grads[0], 0)
    return grad_x.astype(x.dtype), grad_scale, grad_bias, None


batch_norm.defvjp(_batch_norm_forward, _when_needed(_batch_norm_backward))


# --- attention ----------------------------------------------------------------------------------------------------------------


@jax.custom_vjp
def attention(
    query: Float[Array, "B Q N c"],
    key: Float[Array, "B S N c"],
    value: Float[Array, "B S N c"],
    key_mask: Bool[Array, "B S"],
) -> Float[Array, "B Q N c"]:
    """softmax(query key^T / sqrt(c)) value, in the dtype of the inputs, softmax in float32 at least.

    Keys whose mask is False get no weight; every example needs one whose mask is True. The weights, [B, N, Q, S], are not kept
    for the backward pass.
    """
    return jax.lax.platform_dependent(query, key, value, key_mask, cpu=_attention_cpu, default=_attention_accelerator)


def _attention_accelerator(query: Array, key: Array, value: Array, key_mask: Array) -> Array:
    return jax.nn.dot_product_attention(query, key, value, mask=key_mask[:, None, None, :])


def _attention_cpu(query: Array, key: Array, value: Array, key_mask: Array) -> Array:
    """Heads moved first, so that the products are plain batched ones; normalized after the second product, on c numbers of a
    query instead of S."""
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    logits = _logits(query, key, key_mask)
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    out = _product("bnqs,bnsc->bnqc", weights.astype(value.dtype), value) / weights.sum(-1, keepdims=True)
    return out.astype(value.dtype).swapaxes(1, 2)


def _logits(query: Array, key: Array, key_mask: Array) -> Array:
    """[B, N, Q, S], from queries and keys with heads first."""
    logits = _product("bnqc,bnsc->bnqs", query / math.sqrt(query.shape[-1]), key)
    return jnp.where(key_mask[:, None, None, :], logits, jnp.finfo(logits.dtype).min)


def _product(axes: str, a: Array, b: Array) -> Array:
    return jnp.einsum(axes, a, b, preferred_element_type=wide_dtype(a))


def _attention_backward(saved: tuple[Array, ...], grad: Array) -> tuple[Array | None, ...]:
    def cpu(query, key, value, key_mask, out, grad):
        """Source: Dao et al. 2022, arXiv:2205.14135, the gradients without the tiles."""
        query, key, value, out, grad = (x.swapaxes(1, 2) for x in (query, key, value, out, grad))
        weights = jax.nn.softmax(_logits(query, key, key_mask), axis=-1)
        grad_value = _product("bnqs,bnqc->bnsc", weights.astype(grad.dtype), grad)
        grad_weights = _product("bnqc,bnsc->bnqs", grad, value)
        grad_logits = weights * (grad_weights - (wide(grad) * wide(out)).sum(-1, keepdims=True))
        grad_logits = (grad_logits / math.sqrt(query.shape[-1])).astype(query.dtype)
        grad_query = _product("bnqs,bnsc->bnqc", grad_logits, key)
        grad_key = _product("bnqs,bnqc->bnsc", grad_logits, query)
        return tuple(x.swapaxes(1, 2).astype(query.dtype) for x in (grad_query, grad_key, grad_value))

    def accelerator(query, key, value, key_mask, out, grad):
        return jax.vjp(lambda q, k, v: _attention_accelerator(q, k, v, key_mask), query, key, value)[1](grad)

    grads = jax.lax.platform_dependent(*saved, grad, cpu=cpu, default=accelerator)
    return (*grads, None)


def _attention_forward(query: Array, key: Array, value: Array, key_mask: Array):
    out = attention(query, key, value, key_mask)
    return out, (query, key, value, key_mask, out)


attention.defvjp(_attention_forward, _when_needed(_attention_backward))


# --- 3 x 3 convolution --------------------------------------------------------------------------------------------------------


def _convolve(x: Array, kernel: Array) -> Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@jax.custom_vjp
def conv3x3(x: Float[Array, "B h w A"], kernel: Float[Array, "3 3 A Z"]) -> Float[Array, "B h w Z"]:
    """A 3 x 3 convolution with zero padding.

    On CPU it is computed with Winograd's F(2 x 2, 3 x 3), and so are its gradients: 16 multiplications for 2 x 2 outputs instead
    of 36, as products of matrices. Not in bfloat16, in which the sums before the products would lose digits. Source: Lavin and Gray
    2015, arXiv:1509.09308.
    """
    if x.dtype == jnp.bfloat16:
        return _convolve(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=_winograd, default=_convolve)


def _conv3x3_backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    def winograd(x, kernel, grad):
        return _winograd(grad, kernel[::-1, ::-1].swapaxes(2, 3)), _winograd_grad_kernel(x, grad)

    def convolutions(x, kernel, grad):
        return jax.vjp(_convolve, x, kernel)[1](grad)

    if grad.dtype == jnp.bfloat16:
        return convolutions(*saved, grad)
    return jax.lax.platform_dependent(*saved, grad, cpu=winograd, default=convolutions)


conv3x3.defvjp(lambda x, kernel: (conv3x3(x, kernel), (x, kernel)), _when_needed(_conv3x3_backward))

# Three numbers of a kernel to the four that are multiplied.
_KERNEL_TO_FOUR = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])


def _winograd(x: Array, kernel: Array) -> Array:
    batch, height, width, _ = x.shape
    weights = jnp.einsum(
        "ia,jb,abcz->ijcz", _KERNEL_TO_FOUR, _KERNEL_TO_FOUR, kernel, preferred_element_type=kernel.dtype
    )
    tiles = [
        [columns.reshape(-1, x.shape[-1]) for columns in _inputs_to_four(rows, 2)] for rows in _inputs_to_four(x, 1)
    ]
    rows = [_four_to_outputs([tiles[i][j] @ weights[i, j] for j in range(4)]) for i in range(4)]
    columns = [_four_to_outputs([rows[i][j] for i in range(4)]) for j in range(2)]
    y = jnp.stack([jnp.stack([columns[j][i] for j in range(2)]) for i in range(2)])  # [2, 2, tiles, Z]
    y = y.reshape(2, 2, batch, (height + 1) // 2, (width + 1) // 2, -1).transpose(2, 3, 0, 4, 1, 5)
    return y.reshape(batch, height + height % 2, width + width % 2, -1)[:, :height, :width]


def _winograd_grad_kernel(x: Array, grad: Array) -> Array:
    inputs, outputs = x.shape[-1], grad.shape[-1]
    products = [
        a.reshape(-1, inputs).T @ b.reshape(-1, outputs)
        for x_rows, grad_rows in zip(_inputs_to_four(x, 1), _outputs_to_four(grad, 1), strict=True)
        for a, b in zip(_inputs_to_four(x_rows, 2), _outputs_to_four(grad_rows, 2), strict=True)
    ]
    products = jnp.stack(products).reshape(4, 4, inputs, outputs)
    return jnp.einsum("ia,jb,ijcz->abcz", _KERNEL_TO_FOUR, _KERNEL_TO_FOUR, products, preferred_element_type=grad.dtype)


def _inputs_to_four(x: Array, axis: int) -> list[Array]:
    """Of every two places along `axis` and their neighbours, the four sums that are multiplied."""
    size = (x.shape[axis] + 1) // 2
    zeros = [(1, 1 + x.shape[axis] % 2) if i == axis else (0, 0) for i in range(x.ndim)]
    a, b, c, d = (_every_second(jnp.pad(x, zeros), axis, start, size) for start in range(4))
    return [a - c, b + c, c - b, b - d]


def _outputs_to_four(grad: Array, axis: int) -> list[Array]:
    """The transpose of `_four_to_outputs`, for every two places along `axis`."""
    size = (grad.shape[axis] + 1) // 2
    zeros = [(0, grad.shape[axis] % 2) if i == axis else (0, 0) for i in range(grad.ndim)]
    a, b = (_every_second(jnp.pad(grad, zeros), axis, start, size) for start in range(2))
    return [a, a + b, a - b, -b]


def _four_to_outputs(products: Sequence[Array]) -> list[Array]:
    a, b, c, d = products
    return [a + b + c, b - c - d]


def _every_second(x: Array, axis: int, start: int, size: int) -> Array:
    return jax.lax.slice_in_dim(x, start, start + 2 * size - 1, stride=2, axis=axis)
