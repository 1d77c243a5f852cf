"""Small building blocks: norms, attention, MLP, dropout, positions. Feature maps are channels-last everywhere.

A layer casts its parameters to the dtype of its input, and computes and returns in that dtype; statistics of norms and softmax are
float32 at least.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from instancevg_jax.models import fast
from instancevg_jax.models.fast import wide, wide_dtype

DTYPES = {
    "float32": jnp.float32,
    "bfloat16": jnp.bfloat16,
    "float64": jnp.float64,
}  # the last under jax_enable_x64 only
# wrappers of a function of positional modules and arrays: they keep what the backward pass needs, or compute it again
REMAT: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "none": lambda function: function,
    "blocks": nnx.remat,
    "dots": functools.partial(nnx.remat, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable),
}


class Linear(nnx.Linear):
    """nnx.Linear in its input's dtype, on an input flattened to two axes.

    On CPU (jax 0.10.2) a bias gradient summed over more than one axis takes 2.5 times as long.
    """

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, inputs: Float[Array, "... A"]
    ) -> Float[Array, "... Z"]:
        flat = inputs.reshape(-1, inputs.shape[-1]) @ self.kernel[...].astype(inputs.dtype)
        if self.bias is not None:
            flat = flat + self.bias[...].reshape(1, -1).astype(inputs.dtype)
        return flat.reshape(*inputs.shape[:-1], -1)


class LayerNorm(nnx.Module):
    """Layer normalization over the last axis, for tokens [B, L, C] and feature maps [B, h, w, C] alike.

    Flattened like `Linear`, for the same reason.
    """

    def __init__(self, width: int, *, eps: float = 1e-5):
        self.scale = nnx.Param(jnp.ones((width,)))
        self.bias = nnx.Param(jnp.zeros((width,)))
        self.eps = eps

    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
        flat = x.reshape(-1, x.shape[-1])
        return fast.layer_norm(flat, self.scale[...], self.bias[...], self.eps).reshape(x.shape)

    def after_gelu(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
        """The normalized GELU of x, with less to keep for the backward pass than two calls."""
        flat = x.reshape(-1, x.shape[-1])
        return fast.gelu_layer_norm(flat, self.scale[...], self.bias[...], self.eps).reshape(x.shape)


class Conv3x3(nnx.Module):
    """3 x 3 convolution that keeps the size (zero padding), without bias; `kernel` is [3, 3, A, Z]."""

    def __init__(self, in_width: int, width: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(init(rngs.params(), (3, 3, in_width, width)))

    def __call__(self, x: Float[Array, "B h w A"]) -> Float[Array, "B h w Z"]:
        return fast.conv3x3(x, self.kernel[...].astype(x.dtype))


class BatchNorm(nnx.Module):
    """Batch normalization of [B, h, w, C] as torch computes it: the running variance is the unbiased one.

    Under a sharded jit the means are over the global batch, so statistics are synchronized across devices.
    """

    def __init__(self, width: int, *, momentum: float = 0.1, eps: float = 1e-5):
        self.scale = nnx.Param(jnp.ones((width,)))
        self.bias = nnx.Param(jnp.zeros((width,)))
        self.mean = nnx.BatchStat(jnp.zeros((width,)))
        self.variance = nnx.BatchStat(jnp.ones((width,)))
        self.momentum = momentum
        self.eps = eps

    def __call__(self, x: Float[Array, "B h w C"], *, train: bool) -> Float[Array, "B h w C"]:
        flat = x.reshape(-1, x.shape[-1])
        scale, bias = self.scale[...], self.bias[...]
        if train:
            flat, mean, variance = fast.batch_norm(flat, scale, bias, self.eps)
            # set_value: writing by [...] searches the whole trace for the origin of the value, several seconds in all
            unbiased = variance * (flat.shape[0] / max(flat.shape[0] - 1, 1))
            self.mean.set_value((1 - self.momentum) * self.mean[...] + self.momentum * mean)
            self.variance.set_value((1 - self.momentum) * self.variance[...] + self.momentum * unbiased)
        else:
            flat = (wide(flat) - self.mean[...]) * jax.lax.rsqrt(self.variance[...] + self.eps) * scale + bias
        return flat.reshape(x.shape).astype(x.dtype)


class MLP(nnx.Module):
    """Linear layers with ReLU between them, none after the last."""

    def __init__(self, widths: tuple[int, ...], *, rngs: nnx.Rngs):
        pairs = itertools.pairwise(widths)
        self.layers = nnx.List([Linear(a, b, rngs=rngs) for a, b in pairs])

    def __call__(self, x: Float[Array, "... A"]) -> Float[Array, "... Z"]:
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)


class FeedForward(nnx.Module):
    """The two-layer block of a post-norm transformer layer, without the residual."""

    def __init__(self, width: int, hidden: int, dropout: float, *, rngs: nnx.Rngs):
        self.fc1 = Linear(width, hidden, rngs=rngs)
        self.fc2 = Linear(hidden, width, rngs=rngs)
        self.dropout = dropout

    def __call__(self, x: Float[Array, "B Q C"], *, rngs: nnx.Rngs | None = None) -> Float[Array, "B Q C"]:
        x = dropout(jax.nn.relu(self.fc1(x)), self.dropout, rngs)
        return dropout(self.fc2(x), self.dropout, rngs)


class Attention(nnx.Module):
    """Multi-head attention with torch's packed input projection (`in_proj` holds query, key and value side by side)."""

    def __init__(self, width: int, num_heads: int, dropout: float, *, rngs: nnx.Rngs):
        self.in_proj = Linear(width, 3 * width, kernel_init=nnx.initializers.xavier_uniform(), rngs=rngs)
        self.out_proj = Linear(width, width, rngs=rngs)
        self.num_heads = num_heads
        self.dropout = dropout

    def __call__(
        self,
        query: Float[Array, "B Q C"],
        key: Float[Array, "B S C"],
        value: Float[Array, "B S C"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "B Q C"], Float[Array, "B Q S"]]:
        """The output and the attention map (float32 at least) averaged over heads (after dropout, as in torch)."""
        kernels = jnp.split(self.in_proj.kernel[...].astype(query.dtype), 3, axis=1)
        biases = jnp.split(self.in_proj.bias[...].astype(query.dtype), 3)  # pyright: ignore[reportOptionalSubscript]
        q, k, v = (
            split_heads(x @ kernel + bias, self.num_heads)
            for x, kernel, bias in zip((query, key, value), kernels, biases, strict=True)
        )
        weights = dropout(attention_weights(q, k), self.dropout, rngs)
        out = jnp.einsum("bnqs,bsnc->bqnc", weights.astype(v.dtype), v)
        return self.out_proj(out.reshape(query.shape)), weights.mean(1)


def split_heads(x: Float[Array, "B L C"], num_heads: int) -> Float[Array, "B L N c"]:
    """Split the channels into heads."""
    return x.reshape(*x.shape[:2], num_heads, -1)


def attention_weights(
    query: Float[Array, "B Q N c"], key: Float[Array, "B S N c"], key_mask: Bool[Array, "B S"] | None = None
) -> Float[Array, "B N Q S"]:
    """Softmax, in float32 at least, of scaled dot products; keys whose mask is False get no weight."""
    query = query / math.sqrt(query.shape[-1])
    logits = jnp.einsum("bqnc,bsnc->bnqs", query, key, preferred_element_type=wide_dtype(query))
    if key_mask is not None:
        logits = jnp.where(key_mask[:, None, None, :], logits, jnp.finfo(logits.dtype).min)
    return jax.nn.softmax(logits, axis=-1)


def dropout(x: Array, rate: float, rngs: nnx.Rngs | None) -> Array:
    """Zero elements with probability `rate` and scale up the others. Returns x itself without `rngs` (evaluation) or at rate 0."""
    if rngs is None or rate == 0:
        return x
    keep = jax.random.bernoulli(rngs.dropout(), 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0)


def drop_path_scale(batch: int, rate: float, rngs: nnx.Rngs | None, dtype: DTypeLike) -> Float[Array, "B 1 1"] | float:
    """The factor of a residual branch: 0 or 1 / (1 - rate) for each example; 1 without `rngs`."""
    if rngs is None or rate == 0:
        return 1.0
    return (jax.random.bernoulli(rngs.dropout(), 1 - rate, (batch, 1, 1)) / (1 - rate)).astype(dtype)


def sine_positions(valid: np.ndarray, width: int, temperature: float = 10000.0) -> np.ndarray:
    """DETR's normalized 2-D sine positions. `valid`: [h, w] bool, False where padded. Returns [h, w, width] float32.

    The first half of the channels encodes y, the second x; a constant, computed on the host.
    """
    counts = [valid.cumsum(axis, dtype=np.float32) for axis in (0, 1)]
    last = [counts[0][-1:, :], counts[1][:, -1:]]
    frequency = temperature ** (2 * (np.arange(width // 2) // 2) / np.float32(width // 2))
    halves = []
    for count, total in zip(counts, last, strict=True):
        phase = (count / (total + 1e-6) * (2 * np.pi)).astype(np.float32)[..., None] / frequency.astype(np.float32)
        halves.append(np.stack([np.sin(phase[..., 0::2]), np.cos(phase[..., 1::2])], -1).reshape(*valid.shape, -1))
    return np.concatenate(halves, -1).astype(np.float32)


def inverse_sigmoid(x: Float[Array, "..."], eps: float = 1e-3) -> Float[Array, "..."]:
    """log(x / (1 - x)) with x clipped to [0, 1] and both parts at least `eps`, so the result is within +-6.9."""
    x = jnp.clip(x, 0, 1)
    return jnp.log(jnp.maximum(x, eps) / jnp.maximum(1 - x, eps))
