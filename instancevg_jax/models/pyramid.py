"""The feature pyramid made from a single map, and the U-Net that merges it into pixel features.

Source: Li et al. 2022, arXiv:2203.16527 (simple feature pyramid); the original's models/heads/unet_head.py.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from instancevg_jax.models import fast, layers
from instancevg_jax.models.resize import resize_bilinear


class Upsample(nnx.Module):
    """Transposed convolution 2 x 2, stride 2, as a matrix product and a shuffle (XLA's own gradient is slow on CPU)."""

    def __init__(self, in_width: int, out_width: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=0, out_axis=-1)
        self.kernel = nnx.Param(init(rngs.params(), (in_width, 2, 2, out_width)))
        self.bias = nnx.Param(jnp.zeros((out_width,)))

    def __call__(self, x: Float[Array, "B h w A"]) -> Float[Array, "B 2*h 2*w Z"]:
        batch, height, width, channels = x.shape
        kernel = self.kernel[...].astype(x.dtype)
        x = (x.reshape(-1, channels) @ kernel.reshape(channels, -1)).reshape(batch, height, width, 2, 2, -1)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, -1)
        return x + self.bias[...].astype(x.dtype)


class PyramidLevel(nnx.Module):
    """1 x 1 and 3 x 3 convolution, each followed by a channel LayerNorm, without biases or activations."""

    def __init__(self, in_width: int, width: int, *, rngs: nnx.Rngs):
        self.lateral = layers.Linear(in_width, width, use_bias=False, rngs=rngs)
        self.lateral_norm = layers.LayerNorm(width)
        self.conv = layers.Conv3x3(width, width, rngs=rngs)
        self.conv_norm = layers.LayerNorm(width)

    def __call__(self, x: Float[Array, "B h w A"]) -> Float[Array, "B h w C"]:
        return self.conv_norm(self.conv(self.lateral_norm(self.lateral(x))))


class FeaturePyramid(nnx.Module):
    """Four levels at 4, 2, 1 and 1/2 times the input's size, all C wide."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.up4_first = Upsample(width, width // 2, rngs=rngs)
        self.up4_norm = layers.LayerNorm(width // 2)
        self.up4_second = Upsample(width // 2, width // 4, rngs=rngs)
        self.up2 = Upsample(width, width // 2, rngs=rngs)
        widths = (width // 4, width // 2, width, width)
        self.levels = nnx.List([PyramidLevel(w, width, rngs=rngs) for w in widths])

    def __call__(self, x: Float[Array, "B h w C"]) -> list[Float[Array, "B _h _w C"]]:
        """Levels from fine to coarse; the coarsest floors odd sizes."""
        up4 = fast.gelu(self.up4_norm(self.up4_first(x)))
        inputs = (self.up4_second(up4), self.up2(x), x, nnx.max_pool(x, window_shape=(2, 2), strides=(2, 2)))
        return [level(y) for level, y in zip(self.levels, inputs, strict=True)]


class UNetStage(nnx.Module):
    """Enlarge, join with the finer level, and convolve twice (3 x 3, BatchNorm, ReLU)."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.conv1 = layers.Conv3x3(2 * width, width, rngs=rngs)
        self.norm1 = layers.BatchNorm(width)
        self.conv2 = layers.Conv3x3(width, width, rngs=rngs)
        self.norm2 = layers.BatchNorm(width)

    def __call__(
        self, coarse: Float[Array, "B _a _b C"], fine: Float[Array, "B h w C"], *, train: bool
    ) -> Float[Array, "B h w C"]:
        x = jnp.concatenate([resize_bilinear(coarse, fine.shape[1], fine.shape[2]), fine], axis=-1)
        x = jax.nn.relu(self.norm1(self.conv1(x), train=train))
        return jax.nn.relu(self.norm2(self.conv2(x), train=train))


class UNetDecoder(nnx.Module):
    """Merges the pyramid from coarse to fine into pixel features at the finest level's size."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.stages = nnx.List([UNetStage(width, rngs=rngs) for _ in range(3)])

    def __call__(self, pyramid: list[Float[Array, "B _h _w C"]], *, train: bool) -> Float[Array, "B h w C"]:
        *finer, x = pyramid
        for stage, level in zip(self.stages, reversed(finer), strict=True):
            x = stage(x, level, train=train)
        return x
