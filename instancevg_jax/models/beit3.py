"""BEiT-3, the multiway transformer that is backbone and fusion in one: image and text tokens attend to each other in every
block, and each kind has its own copy ("expert") of every weight.

Source: Wang et al. 2022, arXiv:2208.10442; torchscale 0.3.0; the original's models/vis_encs/beit.
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from instancevg_jax.config import ModelConfig
from instancevg_jax.models import fast, layers

UNUSED_POSITIONS = 2  # both position tables start at row 2, as fairseq's do


class Expert(nnx.Module):
    """One kind of token's weights in a block. Both residual branches are pre-norm with a second norm inside (sub-LN)."""

    def __init__(self, width: int, mlp_dim: int, num_heads: int, *, rngs: nnx.Rngs):
        self.attention_norm = layers.LayerNorm(width)
        self.query = layers.Linear(width, width, rngs=rngs)
        self.key = layers.Linear(width, width, rngs=rngs)
        self.value = layers.Linear(width, width, rngs=rngs)
        self.attention_inner_norm = layers.LayerNorm(width)
        self.out = layers.Linear(width, width, rngs=rngs)
        self.mlp_norm = layers.LayerNorm(width)
        self.fc1 = layers.Linear(width, mlp_dim, rngs=rngs)
        self.mlp_inner_norm = layers.LayerNorm(mlp_dim)
        self.fc2 = layers.Linear(mlp_dim, width, rngs=rngs)
        self.num_heads = num_heads

    def qkv(self, x: Float[Array, "B L D"]) -> tuple[Float[Array, "B L N d"], ...]:
        """Queries, keys and values, cut into heads."""
        x = self.attention_norm(x)
        return tuple(layers.split_heads(proj(x), self.num_heads) for proj in (self.query, self.key, self.value))

    def attention_out(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """What comes after the joint attention."""
        return self.out(self.attention_inner_norm(x))

    def mlp(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """The second residual branch."""
        return self.fc2(self.mlp_inner_norm.after_gelu(self.fc1(self.mlp_norm(x))))


class MultiwayBlock(nnx.Module):
    """A transformer block over image and text tokens: joint attention, separate experts."""

    def __init__(self, width: int, mlp_dim: int, num_heads: int, drop_path: float, *, rngs: nnx.Rngs):
        self.vision = Expert(width, mlp_dim, num_heads, rngs=rngs)
        self.text = Expert(width, mlp_dim, num_heads, rngs=rngs)
        self.drop_path = drop_path

    def __call__(
        self,
        vision: Float[Array, "B V D"],
        text: Float[Array, "B L D"],
        key_mask: Bool[Array, "B V+L"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "B V D"], Float[Array, "B L D"]]:
        """V = 1 + P: the class token stands before the patches."""
        batch, split = vision.shape[:2]
        parts = zip(self.vision.qkv(vision), self.text.qkv(text), strict=True)
        query, key, value = (jnp.concatenate(pair, axis=1) for pair in parts)
        attended = fast.attention(query, key, value, key_mask).reshape(batch, query.shape[1], -1)
        scale = layers.drop_path_scale(batch, self.drop_path, rngs, vision.dtype)
        vision = vision + scale * self.vision.attention_out(attended[:, :split])
        text = text + scale * self.text.attention_out(attended[:, split:])
        scale = layers.drop_path_scale(batch, self.drop_path, rngs, vision.dtype)
        return vision + scale * self.vision.mlp(vision), text + scale * self.text.mlp(text)


class BEiT3(nnx.Module):
    """The encoder. Picture size, patch size and every width come from the config."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        width, patch = config.width, config.patch_size
        num_patches = (config.image_height // patch) * (config.image_width // patch)
        normal = nnx.initializers.normal(0.02)
        self.patch_size = patch
        self.dtype = layers.DTYPES[config.compute_dtype]
        self.remat = layers.REMAT[config.remat]
        self.patch_embed = layers.Linear(patch * patch * 3, width, rngs=rngs)
        self.class_token = nnx.Param(normal(rngs.params(), (1, 1, width)))
        self.text_embed = nnx.Embed(config.vocab_size, width, embedding_init=normal, rngs=rngs)
        self.vision_positions = nnx.Param(normal(rngs.params(), (UNUSED_POSITIONS + 1 + num_patches, width)))
        self.text_positions = nnx.Param(normal(rngs.params(), (config.max_text_positions, width)))
        rates = [config.drop_path * i / max(config.depth - 1, 1) for i in range(config.depth)]
        self.blocks = nnx.List(
            [MultiwayBlock(width, config.mlp_dim, config.num_heads, rate, rngs=rngs) for rate in rates]
        )
        self.vision_norm = layers.LayerNorm(width)
        self.text_norm = layers.LayerNorm(width)
        if config.initialization == "local":
            self._start_local((config.image_height // patch, config.image_width // patch), width)

    def _start_local(self, grid: tuple[int, int], width: int) -> None:
        """Let every patch look at first at those that are near and alike: sine positions, and keys that equal the queries.

        Source: Beyer et al. 2022, arXiv:2205.01580 (positions); Trockman and Kolter 2023, arXiv:2305.09828 (keys).
        """
        positions = layers.sine_positions(np.ones(grid, bool), width, temperature=100.0).reshape(-1, width)
        self.vision_positions[...] = self.vision_positions[...].at[UNUSED_POSITIONS + 1 :].set(positions)
        for block in self.blocks:
            for expert in (block.vision, block.text):
                expert.key.kernel[...] = jnp.copy(expert.query.kernel[...])  # a buffer of its own: states are donated

    def embed(
        self, images: Float[Array, "B H W 3"], token_ids: Int[Array, "B L"], token_mask: Bool[Array, "B L"]
    ) -> tuple[Float[Array, "B V D"], Float[Array, "B L D"]]:
        """The first block's input: class token and patches, and words, with positions added. Padded words are zero."""
        batch, height, width, _ = images.shape
        p = self.patch_size
        patches = images.reshape(batch, height // p, p, width // p, p, 3).transpose(0, 1, 3, 2, 4, 5)
        patches = self.patch_embed(patches.reshape(batch, -1, p * p * 3).astype(self.dtype))
        class_token = jnp.broadcast_to(self.class_token[...], (batch, 1, patches.shape[-1]))
        vision = jnp.concatenate([class_token, patches], axis=1) + self.vision_positions[UNUSED_POSITIONS:]
        length = token_ids.shape[1]
        text = self.text_embed(token_ids) + self.text_positions[UNUSED_POSITIONS : UNUSED_POSITIONS + length]
        return vision.astype(self.dtype), (text * token_mask[..., None]).astype(self.dtype)

    def __call__(
        self,
        images: Float[Array, "B H W 3"],
        token_ids: Int[Array, "B L"],
        token_mask: Bool[Array, "B L"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "B D"], Float[Array, "B P D"], Float[Array, "B L D"]]:
        """Class token, image tokens (row by row) and text tokens. Rows of padded text are not zero; mask them."""
        vision, text = self.embed(images, token_ids, token_mask)
        key_mask = jnp.concatenate([jnp.ones(vision.shape[:2], bool), token_mask], axis=1)
        run = self.remat(lambda block, vision, text, rngs: block(vision, text, key_mask, rngs=rngs))
        for block in self.blocks:
            vision, text = run(block, vision, text, rngs)
        vision, text = self.vision_norm(vision), self.text_norm(text)
        return vision[:, 0], vision[:, 1:], text
