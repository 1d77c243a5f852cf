"""How a network starts that is trained from scratch."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from instancevg_jax.models import layers
from instancevg_jax.models.beit3 import BEiT3
from tests import small


@pytest.mark.parametrize(("initialization", "near_and_alike_first"), [("local", True), ("normal", False)])
def test_attention_starts_local_only_where_asked(initialization, near_and_alike_first):
    """Of a picture of one colour: the weight that patches of the first block give to themselves and their neighbours."""
    model = small.config(initialization=initialization, image_height=64, image_width=64).model
    backbone = BEiT3(model, rngs=nnx.Rngs(0))
    ids = np.full((1, small.TOKENS), 5, np.int32)
    vision, _ = backbone.embed(np.zeros((1, 64, 64, 3), np.float32), ids, np.ones_like(ids, bool))
    query, key, _ = backbone.blocks[0].vision.qkv(vision[:, 1:])
    weights = layers.attention_weights(query, key)[0].mean(0)
    row, column = np.divmod(np.arange(64), 8)
    near = (abs(row[:, None] - row) <= 1) & (abs(column[:, None] - column) <= 1)
    ratio = weights[near].mean() / weights[~near].mean()
    assert (ratio > 2) == near_and_alike_first, ratio


def test_a_local_start_keeps_queries_and_keys_in_buffers_of_their_own():
    """A training step gives its state away, which one buffer for two leaves forbids."""
    backbone = BEiT3(small.config(initialization="local").model, rngs=nnx.Rngs(0))
    for block in backbone.blocks:
        for expert in (block.vision, block.text):
            query, key = expert.query.kernel[...], expert.key.kernel[...]
            assert jnp.array_equal(query, key)
            assert query.unsafe_buffer_pointer() != key.unsafe_buffer_pointer()
