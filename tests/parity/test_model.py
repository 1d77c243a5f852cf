"""F3: the whole model against the original's outputs, from the tiny sizes to the official ones."""

import jax
import pytest
from flax import nnx

from tests import oracle
from tests.parity import models

INPUTS = {
    "tiny": ((201, 3, 64), (202, [6, 14, 50], 50, 256)),
    "tiny1": ((211, 3, 64), (212, [3, 12, 20], 20, 256)),
    "grefcoco": ((221, 2, 320), (222, [9, 31], 50, 64010)),
    "refcoco_base": ((231, 2, 320), (232, [7, 20], 20, 64010)),
    "refcoco_large": ((241, 1, 320), (242, [11], 20, 64010)),
}
SIZES = ["tiny", "tiny1", "grefcoco", "refcoco_base", pytest.param("refcoco_large", marks=pytest.mark.slow)]


@pytest.mark.parametrize("name", SIZES)
def test_whole_model(name):
    expected = oracle.fixture(f"f3_{name}")
    graph, state = nnx.split(models.load(models.CONFIGS[name], name))
    forward = jax.jit(lambda state, *batch: nnx.merge(graph, state).forward(*batch))
    outputs, inner = forward(state, *models.inputs(*INPUTS[name]))

    def close(actual, key, atol):
        models.assert_close(actual, expected[key], atol, key)

    close(outputs.points, "points", 1e-6)
    close(outputs.point_map, "attn_map_query", 1e-6)
    attention = inner["attention"]
    close(attention, "attn_map", 1e-6)
    text = inner["text"] if name.startswith("tiny") else inner["text"][..., ::4]
    close(text, "lan_embed", 2e-5)
    close(inner["queries"], "query_feat", 2e-5)
    close(inner["states"], "inter_states", 2e-5)
    close(inner["references"], "init_reference", 1e-6)
    close(outputs.class_logits[-1], "pred_class", 5e-5)
    close(jax.nn.softmax(outputs.class_logits[-1])[..., 0], "scores_softmax", 2e-5)
    close(outputs.boxes[-1], "pred_bbox", 2e-6)
    close(outputs.existence_logits, "nt_label", 2e-5)
    full = name.startswith("tiny")
    step, suffix = (1, "") if full else (4, "_s4")
    close(outputs.mask_logits[..., ::step, ::step], f"pred_mask{suffix}", 1e-4)
    close(outputs.global_mask_logits[:, None, ::step, ::step], f"pred_global_mask{suffix}", 1e-4)
