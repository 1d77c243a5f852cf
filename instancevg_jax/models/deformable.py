"""Multi-scale deformable attention and the decoder built on it.

Source: Zhu et al. 2021, arXiv:2010.04159; the original's layers/multi_scale_deform_attn.py and
models/heads/transformers/deformable_transformer.py.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from instancevg_jax.config import ModelConfig
from instancevg_jax.models import layers


def deformable_attention(
    values: Float[Array, "B S N c"],
    shapes: Sequence[tuple[int, int]],
    locations: Float[Array, "B Q N levels points 2"],
    weights: Float[Array, "B Q N levels points"],
) -> Float[Array, "B Q N*c"]:
    """Weighted sum of bilinear samples from several feature maps.

    `values` holds the maps of all levels one after the other, row by row; `shapes` their (h, w). `locations` are (x, y), where
    (0, 0) is the outer corner of the first pixel and (1, 1) that of the last; values outside are zero. A single gather fetches
    all corners of all samples. Locations and weights are float32 at least; the result has the dtype of `values`.
    """
    batch, _, num_heads, _ = values.shape
    sizes = np.array([(w, h) for h, w in shapes], np.float32)
    starts = np.cumsum([0] + [h * w for h, w in shapes[:-1]]).astype(np.int32)
    size = jnp.asarray(sizes)[:, None, :]
    position = ((2 * locations - 1 + 1) * size - 1) / 2
    corner = jnp.floor(position)
    fraction = position - corner
    limits = jnp.asarray(sizes.astype(np.int32))[:, None, :]
    indices, factors = [], []
    for dy in (0, 1):
        for dx in (0, 1):
            offset = np.array([dx, dy])
            cell = corner.astype(jnp.int32) + offset
            inside = ((cell >= 0) & (cell < limits)).all(-1)
            cell = jnp.clip(cell, 0, limits - 1)
            indices.append(jnp.asarray(starts)[:, None] + cell[..., 1] * limits[..., 0] + cell[..., 0])
            part = jnp.where(offset == 1, fraction, 1 - fraction)
            factors.append(part[..., 0] * part[..., 1] * inside * weights)
    index = jnp.stack(indices, -1).swapaxes(1, 2).reshape(batch, num_heads, -1, 1)
    factor = jnp.stack(factors, -1).swapaxes(1, 2)
    num_queries = locations.shape[1]
    sampled = jnp.take_along_axis(values.swapaxes(1, 2), index, axis=2)
    sampled = sampled.reshape(batch, num_heads, num_queries, -1, sampled.shape[-1])
    out = jnp.einsum("bnqk,bnqkc->bqnc", factor.reshape(batch, num_heads, num_queries, -1), sampled)
    return out.reshape(batch, num_queries, -1).astype(values.dtype)


class DeformableAttention(nnx.Module):
    """Each query attends to a few learned locations around its reference point, on every level."""

    def __init__(self, width: int, num_heads: int, num_levels: int, num_points: int, dropout: float, *, rngs: nnx.Rngs):
        shape = (num_heads, num_levels, num_points)
        zeros = nnx.initializers.zeros
        self.sampling_offsets = layers.Linear(width, 2 * math.prod(shape), kernel_init=zeros, rngs=rngs)
        self.sampling_offsets.bias = nnx.Param(jnp.asarray(_ring_offsets(*shape)))
        self.attention_weights = layers.Linear(width, math.prod(shape), kernel_init=zeros, rngs=rngs)
        self.value_proj = layers.Linear(width, width, rngs=rngs)
        self.output_proj = layers.Linear(width, width, rngs=rngs)
        self.shape = shape
        self.dropout = dropout

    def __call__(
        self,
        query: Float[Array, "B Q C"],
        memory: Float[Array, "B S C"],
        shapes: Sequence[tuple[int, int]],
        references: Float[Array, "B Q levels R"],
        *,
        memory_mask: Bool[Array, "B S"] | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B Q C"]:
        """`references`: points (R = 2) or boxes cxcywh (R = 4) in [0, 1] for every level. `memory_mask`: True where real."""
        num_heads, num_levels, num_points = self.shape
        batch, num_queries, _ = query.shape
        values = self.value_proj(memory)
        if memory_mask is not None:
            values = values * memory_mask[..., None]
        exact = layers.wide(query)
        offsets = self.sampling_offsets(exact).reshape(batch, num_queries, *self.shape, 2)
        weights = self.attention_weights(exact).reshape(batch, num_queries, num_heads, num_levels * num_points)
        weights = jax.nn.softmax(weights, axis=-1).reshape(batch, num_queries, *self.shape)
        anchor = references[:, :, None, :, None, :]
        if references.shape[-1] == 2:
            sizes = jnp.asarray(np.array([(w, h) for h, w in shapes], np.float32))
            locations = anchor + offsets / sizes[:, None, :]
        else:
            locations = anchor[..., :2] + offsets / num_points * anchor[..., 2:] * 0.5
        values = layers.split_heads(values, num_heads)
        out = self.output_proj(deformable_attention(values, shapes, locations, weights))
        return layers.dropout(out, self.dropout, rngs)


def _ring_offsets(num_heads: int, num_levels: int, num_points: int) -> np.ndarray:
    """Deformable DETR's first sampling pattern: head i looks in direction i, point k at k + 1 pixels."""
    angle = np.arange(num_heads) * (2 * np.pi / num_heads)
    direction = np.stack([np.cos(angle), np.sin(angle)], -1)
    direction /= np.abs(direction).max(-1, keepdims=True)
    steps = np.arange(1, num_points + 1)[:, None]
    pattern = np.broadcast_to(direction[:, None, None, :] * steps, (num_heads, num_levels, num_points, 2))
    return pattern.reshape(-1).astype(np.float32)


class DecoderLayer(nnx.Module):
    """Post-norm: queries among themselves, then the feature pyramid, then an MLP."""

    def __init__(self, config: ModelConfig, num_levels: int, *, rngs: nnx.Rngs):
        width, heads, rate = config.head_width, config.decoder_heads, config.head_dropout
        self.self_attention = layers.Attention(width, heads, rate, rngs=rngs)
        self.cross_attention = DeformableAttention(width, heads, num_levels, config.decoder_points, rate, rngs=rngs)
        self.mlp = layers.FeedForward(width, config.decoder_mlp_dim, rate, rngs=rngs)
        self.norms = nnx.List([layers.LayerNorm(width) for _ in range(3)])

    def __call__(
        self,
        x: Float[Array, "B Q C"],
        positions: Float[Array, "B Q C"],
        memory: Float[Array, "B S C"],
        shapes: Sequence[tuple[int, int]],
        references: Float[Array, "B Q levels 2"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B Q C"]:
        """One layer; `positions` are added to the queries of both attentions."""
        at = x + positions
        x = self.norms[0](x + self.self_attention(at, at, x, rngs=rngs)[0])
        x = self.norms[1](x + self.cross_attention(x + positions, memory, shapes, references, rngs=rngs))
        return self.norms[2](x + self.mlp(x, rngs=rngs))


class DeformableDecoder(nnx.Module):
    """K layers over the pyramid. The references are not refined from layer to layer."""

    def __init__(self, config: ModelConfig, num_levels: int, *, rngs: nnx.Rngs):
        self.reference_points = layers.Linear(
            config.head_width, 2, kernel_init=nnx.initializers.xavier_normal(), rngs=rngs
        )
        self.remat = layers.REMAT[config.remat]
        self.layers = nnx.List([DecoderLayer(config, num_levels, rngs=rngs) for _ in range(config.decoder_layers)])

    def __call__(
        self,
        queries: Float[Array, "B Q C"],
        positions: Float[Array, "B Q C"],
        points: Float[Array, "B Q 2"],
        pyramid: Sequence[Float[Array, "B _h _w C"]],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "K B Q C"], Float[Array, "B Q 2"]]:
        """Every layer's output, and the references: the points moved by sigmoid(linear(positions)), which may exceed 1."""
        references = jax.nn.sigmoid(self.reference_points(layers.wide(positions))) + points
        shapes = [(level.shape[1], level.shape[2]) for level in pyramid]
        memory = jnp.concatenate([level.reshape(level.shape[0], -1, level.shape[-1]) for level in pyramid], axis=1)
        by_level = jnp.repeat(references[:, :, None, :], len(shapes), axis=2)
        run = self.remat(lambda layer, x, memory, rngs: layer(x, positions, memory, shapes, by_level, rngs=rngs))
        states = []
        for layer in self.layers:
            queries = run(layer, queries, memory, rngs)
            states.append(queries)
        return jnp.stack(states), references
