"""InstanceVG, the whole network. Source: TPAMI 2025; the original's models/det_seg and models/heads/uni_gref_deformable_head.py."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from instancevg_jax.config import ModelConfig
from instancevg_jax.models import layers
from instancevg_jax.models.beit3 import BEiT3
from instancevg_jax.models.deformable import DeformableDecoder
from instancevg_jax.models.initialization import draw_official
from instancevg_jax.models.pyramid import FeaturePyramid, UNetDecoder
from instancevg_jax.models.queries import InstanceQueries
from instancevg_jax.models.resize import resize_bilinear
from instancevg_jax.types import Outputs

PYRAMID_LEVELS = 4


class InstanceVG(nnx.Module):
    """Picture and sentence in; classes, boxes, masks, a global mask and "is anything meant" out.

    Deterministic unless called with `rngs` (a stream named `dropout`); `train=True` makes BatchNorm use and update batch
    statistics. The two are separate so that training with all drop rates at 0 needs no random numbers. Parameters and
    outputs are float32 whatever `config.compute_dtype` is.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        width = config.head_width
        self.grid = (config.image_height // config.patch_size, config.image_width // config.patch_size)
        self.backbone = BEiT3(config, rngs=rngs)
        self.image_proj = layers.Linear(config.width, width, use_bias=False, rngs=rngs)
        self.text_proj = layers.Linear(config.width, width, use_bias=False, rngs=rngs)
        self.pyramid = FeaturePyramid(width, rngs=rngs)
        self.mask_decoder = UNetDecoder(width, rngs=rngs)
        self.queries = InstanceQueries(config, rngs=rngs)
        self.query_positions = layers.Linear(2, width, rngs=rngs)
        self.decoder = DeformableDecoder(config, PYRAMID_LEVELS, rngs=rngs)
        self.class_head = layers.Linear(width, 2, rngs=rngs)
        self.box_head = layers.MLP((width, width, width, 4), rngs=rngs)
        self.box_head.layers[-1].bias = nnx.Param(jnp.array([0.0, 0.0, -2.0, -2.0]))  # boxes start small
        self.global_mask_head = layers.Linear(width, 1, rngs=rngs)
        self.existence_head = layers.MLP((width, width, width, 2), rngs=rngs)
        if config.initialization == "official":
            draw_official(self, rngs.params())

    def __call__(
        self,
        images: Float[Array, "B H W 3"],
        token_ids: Int[Array, "B L"],
        token_mask: Bool[Array, "B L"],
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Outputs:
        """Normalized RGB pictures, token ids and the mask of real tokens -> Outputs (see types.py for every shape)."""
        return self.forward(images, token_ids, token_mask, train=train, rngs=rngs)[0]

    def forward(
        self,
        images: Float[Array, "B H W 3"],
        token_ids: Int[Array, "B L"],
        token_mask: Bool[Array, "B L"],
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Outputs, dict[str, Array]]:
        """As a call, and the named intermediates besides (inside jit, those nobody uses cost nothing)."""
        height, width = images.shape[1:3]
        _, image_tokens, text_tokens = self.backbone(images, token_ids, token_mask, rngs=rngs)
        text = self.text_proj(text_tokens)
        image = self.image_proj(image_tokens).reshape(images.shape[0], *self.grid, -1)
        pyramid = self.pyramid(image)
        queries, points, point_map, attention = self.queries(text, token_mask, image, rngs=rngs)
        positions = self.query_positions(points).astype(queries.dtype)
        states, references = self.decoder(queries, positions, points, pyramid, rngs=rngs)
        class_logits, boxes = self.detect(layers.wide(states), references)

        pixels = self.mask_decoder(pyramid, train=train)
        masks = jnp.einsum("bqc,bhwc->bhwq", states[-1], pixels, preferred_element_type=layers.wide_dtype(pixels))
        masks = resize_bilinear(masks, height, width).transpose(0, 3, 1, 2)
        global_mask = resize_bilinear(layers.wide(self.global_mask_head(pixels)), height, width)[..., 0]
        existence = layers.wide(self.existence_head(pixels.reshape(images.shape[0], -1, pixels.shape[-1]))).mean(1)
        outputs = Outputs(
            class_logits=class_logits,
            boxes=boxes,
            mask_logits=masks,
            global_mask_logits=global_mask,
            existence_logits=existence,
            points=points,
            point_map=point_map,
        )
        intermediates = {
            "text": text,
            "image": image,
            "queries": queries,
            "attention": attention,
            "states": states,
            "references": references,
            "pixels": pixels,
        }
        return outputs, intermediates

    def detect(
        self, states: Float[Array, "K B Q C"], references: Float[Array, "B Q 2"]
    ) -> tuple[Float[Array, "K B Q 2"], Float[Array, "K B Q 4"]]:
        """Class logits and boxes of every decoder layer; one pair of heads serves all of them."""
        offsets = self.box_head(states)
        centres = offsets[..., :2] + layers.inverse_sigmoid(references)
        boxes = jax.nn.sigmoid(jnp.concatenate([centres, offsets[..., 2:]], axis=-1))
        return self.class_head(states), boxes
