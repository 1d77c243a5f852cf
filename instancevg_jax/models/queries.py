"""Instance queries: words attend to the picture, the places with the highest attention become reference points, and the
features of a point and a word together become a query.

Source: paper, section 3.2 (attention-guided query selection); `AQSM` in the original's models/heads/uni_gref_deformable_head.py.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from instancevg_jax.config import ModelConfig
from instancevg_jax.models import layers


def rank_tokens(text: Float[Array, "B L C"], token_mask: Bool[Array, "B L"], num_queries: int) -> Int[Array, "B Q"]:
    """Positions of the Q real tokens of the largest mean activation, best first; BOS and EOS take part.

    A sentence of fewer than Q tokens gives the first Q positions instead, padding included.
    """
    scores = jnp.where(token_mask, layers.wide(text * token_mask[..., None]).mean(-1), -jnp.inf)
    ranked = jax.lax.top_k(scores, num_queries)[1]
    enough = token_mask.sum(-1, keepdims=True) >= num_queries
    return jnp.where(enough, ranked, jnp.arange(num_queries))


def select_tokens(
    text: Float[Array, "B L C"], token_mask: Bool[Array, "B L"], num_queries: int
) -> tuple[Float[Array, "B Q C"], Bool[Array, "B Q"]]:
    """The tokens of `rank_tokens`, and whether they are real; padded ones are zero."""
    index = rank_tokens(text, token_mask, num_queries)
    text = text * token_mask[..., None]
    return jnp.take_along_axis(text, index[..., None], axis=1), jnp.take_along_axis(token_mask, index, axis=1)


def select_channels(text: Float[Array, "B L C"], num_queries: int) -> tuple[Float[Array, "B Q C"], Bool[Array, "B Q"]]:
    """The Q largest values of each channel separately, over all positions including padding (the original's
    `score_text_select=False`)."""
    selected = jax.lax.top_k(text.swapaxes(1, 2), num_queries)[0].swapaxes(1, 2)
    return selected, jnp.ones(selected.shape[:2], bool)


def select_points(point_map: Float[Array, "B h w"], num_points: int, distance_weight: float) -> Int[Array, "B Q"]:
    """Flat indices (y * w + x) of points chosen greedily: the best score first, then always the best of
    score + distance_weight * (distance to the nearest chosen point) / diagonal. Ties go to the lowest index.

    The score is the sigmoid of the map; distances are in patches. No gradient flows through the choice.
    """
    batch, height, width = point_map.shape
    ys, xs = np.divmod(np.arange(height * width), width)
    pairwise = np.hypot(ys[:, None] - ys, xs[:, None] - xs).astype(np.float32)
    scores = jax.nn.sigmoid(point_map.reshape(batch, -1))
    diagonal = np.float32(math.sqrt(height * height + width * width))

    def choose(carry, _):
        nearest, free = carry
        bonus = jnp.where(jnp.isinf(nearest), 0, distance_weight * nearest / diagonal)
        index = jnp.argmax(jnp.where(free, scores + bonus, -jnp.inf), axis=-1)
        nearest = jnp.minimum(nearest, jnp.asarray(pairwise)[index])
        # no scatter: over a batch that is split over devices, XLA would send every device's indices to all others
        return (nearest, free & (jnp.arange(height * width) != index[:, None])), index

    start = jnp.full(scores.shape, jnp.inf), jnp.ones(scores.shape, bool)
    _, chosen = jax.lax.scan(choose, start, length=num_points)
    return chosen.T


class TextToImageLayer(nnx.Module):
    """One post-norm decoder layer whose query positions are words and whose keys are patches; the content starts at zero."""

    def __init__(self, width: int, num_heads: int, mlp_dim: int, dropout: float, *, rngs: nnx.Rngs):
        self.self_attention = layers.Attention(width, num_heads, dropout, rngs=rngs)
        self.cross_attention = layers.Attention(width, num_heads, dropout, rngs=rngs)
        self.mlp = layers.FeedForward(width, mlp_dim, dropout, rngs=rngs)
        self.norms = nnx.List([layers.LayerNorm(width) for _ in range(3)])
        self.final_norm = layers.LayerNorm(width)

    def __call__(
        self,
        words: Float[Array, "B Q C"],
        image: Float[Array, "B P C"],
        positions: Float[Array, "P C"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "B Q C"], Float[Array, "B Q P"]]:
        """The words after attention, and their attention maps averaged over heads."""
        content = jnp.zeros_like(words)
        content = self.norms[0](content + self.self_attention(words, words, content, rngs=rngs)[0])
        looked, attention = self.cross_attention(content + words, image + positions, image, rngs=rngs)
        content = self.norms[1](content + looked)
        content = self.norms[2](content + self.mlp(content, rngs=rngs))
        return self.final_norm(content), attention


class InstanceQueries(nnx.Module):
    """From words and the feature map to Q instance queries, each with a reference point."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        width = config.head_width
        self.num_queries = config.num_queries
        self.text_selection = config.text_selection
        self.point_selection = config.point_selection
        self.distance_weight = config.point_distance_weight
        self.text_to_image = TextToImageLayer(
            width, config.decoder_heads, config.query_mlp_dim, config.head_dropout, rngs=rngs
        )
        self.mlp = layers.MLP((2 * width, width, width, width), rngs=rngs)

    def __call__(
        self,
        text: Float[Array, "B L C"],
        token_mask: Bool[Array, "B L"],
        image: Float[Array, "B h w C"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "B Q C"], Float[Array, "B Q 2"], Float[Array, "B h w"], Float[Array, "B Q h w"]]:
        """Queries, their points (x, y) in [0, 1], the pooled attention they were chosen from, and each word's attention."""
        batch, height, width, channels = image.shape
        if self.text_selection == "token":
            words, word_mask = select_tokens(text, token_mask, self.num_queries)
        else:
            words, word_mask = select_channels(text, self.num_queries)
        patches = image.reshape(batch, -1, channels)
        positions = layers.sine_positions(np.ones((height, width), bool), channels).reshape(-1, channels)
        looked, attention = self.text_to_image(words, patches, jnp.asarray(positions, patches.dtype), rngs=rngs)
        pooled = jnp.where(word_mask[..., None], attention, -jnp.inf).max(1)
        point_map = pooled.reshape(batch, height, width)
        if self.point_selection == "distance":
            index = select_points(point_map, self.num_queries, self.distance_weight)
        else:
            index = jax.lax.top_k(pooled, self.num_queries)[1]
        at_points = jnp.take_along_axis(patches, index[..., None], axis=1)
        points = jnp.stack([(index % width + 0.5) / width, (index // width + 0.5) / height], axis=-1)
        queries = self.mlp(jnp.concatenate([looked, at_points], axis=-1))
        return queries, points, point_map, attention.reshape(batch, -1, height, width)
