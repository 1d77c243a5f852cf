"""Operations with backward passes of their own, which save memory and time; outputs and gradients are those of plain autodiff.

Each keeps its inputs and a few statistics for the backward pass and computes the rest again. Where a faster way depends on the
platform, `jax.lax.platform_dependent` chooses it, so a program exported for another platform gets that platform's way.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def wide_dtype(x: Array) -> jnp.dtype:
    """The dtype of sums, softmax, coordinates and outputs where activations have x's: float32 at least."""
    return jnp.promote_types(x.dtype, jnp.float32)


def wide(x: Array) -> Array:
    """x in its `wide_dtype`."""
    return x.astype(wide_dtype(x))


# --- GELU ---------------------------------------------------------------------------------------------------------------------


def _gelu(x: Array) -> Array:
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


def _gelu_slope(x: Array) -> Array:
    return 0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5))) + x * jnp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


@jax.custom_vjp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact GELU, through erf: XLA's erfc, which `jax.nn.gelu` uses, is several times slower on CPU."""
    return _gelu(wide(x)).astype(x.dtype)


gelu.defvjp(lambda x: (gelu(x), x), lambda x, grad: ((wide(grad) * _gelu_slope(wide(x))).astype(x.dtype),))


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


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


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


gelu_layer_norm.defvjp(_gelu_layer_norm_forward, _gelu_layer_norm_backward)


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


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


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


attention.defvjp(_attention_forward, _attention_backward)


# --- 3 x 3 convolution --------------------------------------------------------------------------------------------------------


def _convolve(x: Array, kernel: Array) -> Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@jax.custom_vjp
def conv3x3(x: Float[Array, "B h w A"], kernel: Float[Array, "3 3 A Z"]) -> Float[Array, "B h w Z"]:
    """A 3 x 3 convolution with zero padding. On CPU each gradient is a single matrix product, where XLA's own is slow."""
    return _convolve(x, kernel)


def _conv3x3_backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    def products(x, kernel, grad):
        return _conv3x3_grad_x(kernel, grad), _conv3x3_grad_kernel(x, grad)

    def convolutions(x, kernel, grad):
        return jax.vjp(_convolve, x, kernel)[1](grad)

    return jax.lax.platform_dependent(*saved, grad, cpu=products, default=convolutions)


def _conv3x3_grad_x(kernel: Array, grad: Array) -> Array:
    """One product with three shifts of the gradient along x gives the parts of three rows, which are shifted and added."""
    height, (_, _, inputs, outputs) = grad.shape[1], kernel.shape
    matrix = kernel.transpose(1, 3, 0, 2).reshape(3 * outputs, 3 * inputs)
    rows = _shifted(grad, 2, (2, 1, 0)).reshape(-1, 3 * outputs) @ matrix
    rows = jnp.pad(rows.reshape(*grad.shape[:3], 3, inputs), ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
    first, second, third = (rows[:, 2 - i : 2 - i + height, :, i] for i in range(3))
    return first + second + third


def _conv3x3_grad_kernel(x: Array, grad: Array) -> Array:
    """One product of three shifts of x along x with three shifts of the gradient along y."""
    inputs, outputs = x.shape[-1], grad.shape[-1]
    columns, rows = _shifted(x, 2, (0, 1, 2)), _shifted(grad, 1, (2, 1, 0))
    flat = columns.reshape(-1, 3 * inputs).T @ rows.reshape(-1, 3 * outputs)
    return flat.reshape(3, inputs, 3, outputs).transpose(2, 0, 1, 3)


def _shifted(x: Array, axis: int, starts: tuple[int, int, int]) -> Array:
    """Three copies side by side in the channels, each cut from x with a zero at either end of `axis`, from `starts` on."""
    padded = jnp.pad(x, [(1, 1) if i == axis else (0, 0) for i in range(x.ndim)])
    parts = [jax.lax.slice_in_dim(padded, start, start + x.shape[axis], axis=axis) for start in starts]
    return jnp.concatenate(parts, axis=-1)


conv3x3.defvjp(lambda x, kernel: (_convolve(x, kernel), (x, kernel)), _conv3x3_backward)
