"""F1: BEiT-3 alone, layer by layer at the tiny size and as a whole at the official one."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracle
from tests.parity import models


@pytest.mark.parametrize(("run", "lengths", "tokens"), [("L50", [6, 14, 50], 50), ("L20", None, 20)])
def test_tiny_layer_by_layer(run, lengths, tokens):
    expected = oracle.fixture("f1_beit3_tiny")
    ids, mask = expected[f"{run}_ids"].astype(np.int32), expected[f"{run}_mask"] == 0
    image = oracle.recipe().make_image(101, 3, 64).transpose(0, 2, 3, 1)
    assert ids.shape[1] == tokens
    if lengths:
        assert mask.sum(1).tolist() == lengths
    backbone = models.model("tiny").backbone
    vision, text = backbone.embed(image, ids, mask)
    key_mask = jnp.concatenate([jnp.ones(vision.shape[:2], bool), mask], axis=1)
    models.assert_close(jnp.concatenate([vision, text], 1), expected[f"{run}_embed_in"], 2e-5, "embed_in")
    for i, block in enumerate(backbone.blocks):
        vision, text = block(vision, text, key_mask)
        models.assert_close(jnp.concatenate([vision, text], 1), expected[f"{run}_layer{i}_out"], 2e-5, f"layer {i}")
    parts = backbone(image, ids, mask)
    for actual, key in zip(parts, ("cls_feat", "img_feat", "text_feat"), strict=True):
        models.assert_close(actual, expected[f"{run}_{key}"], 2e-5, key)


def test_base():
    expected = oracle.fixture("f1_beit3_base320")
    backbone = models.load(models.CONFIGS["grefcoco"], "grefcoco").backbone
    images, ids, mask = models.inputs((111, 2, 320), (112, [9, 31], 50, 64010))
    class_token, image, text = backbone(images, ids, mask)
    models.assert_close(class_token, expected["cls_feat"], 2e-5, "class token")
    models.assert_close(image[:, ::8, ::8], expected["img_feat_s"], 2e-5, "image tokens")
    models.assert_close(text[:, ::2, ::8], expected["text_feat_s"], 2e-5, "text tokens")
    for actual, key in ((image, "img_feat"), (text, "text_feat")):
        np.testing.assert_allclose(models.stats(np.asarray(actual)), expected[f"{key}_stats_f64"], rtol=1e-4, atol=1e-2)
