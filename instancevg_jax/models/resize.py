"""Bilinear resizing on the device with aligned corner pixels (torch's `align_corners=True`)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def _weights(source: int, target: int) -> np.ndarray:
    """[target, source]: each row blends the two source pixels around a target pixel."""
    scale = np.float32((source - 1) / (target - 1)) if target > 1 else np.float32(0)
    position = scale * np.arange(target, dtype=np.float32)
    low = np.minimum(np.floor(position).astype(np.int32), source - 1)
    high = np.minimum(low + 1, source - 1)
    weights = np.zeros((target, source), np.float32)
    weights[np.arange(target), low] = 1 - (position - low)
    weights[np.arange(target), high] += position - low
    return weights


def resize_bilinear(x: Float[Array, "B h w C"], height: int, width: int) -> Float[Array, "B H W C"]:
    """Resize pictures or feature maps, computed in float32 at least; the centres of the corner pixels keep their positions.

    Two matrix products, whose gradient is cheap everywhere; the gradient of a gather is a scatter, several times slower on CPU.
    """
    dtype, exact = x.dtype, jax.lax.Precision.HIGHEST
    if x.shape[1] != height:
        x = jnp.einsum("Hh,bhwc->bHwc", _weights(x.shape[1], height), x, precision=exact)
    if x.shape[2] != width:
        x = jnp.einsum("Ww,bhwc->bhWc", _weights(x.shape[2], width), x, precision=exact)
    return x.astype(dtype)
