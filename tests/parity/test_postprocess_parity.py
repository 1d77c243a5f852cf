"""F6: pictures and sentences in, the answer at the picture's size and point coverage out, as the original's test forward."""

import jax
import numpy as np
import pytest
from flax import nnx

from instancevg_jax.answers.postprocess import postprocess, resize_mask
from instancevg_jax.config import EvalConfig
from instancevg_jax.evaluation.metrics import coverage
from tests import oracle
from tests.parity import models

CASES = {
    "tiny": ("f4_losses_tiny", ((401, 4, 64), (402, [6, 14, 50, 23], 50, 256))),
    "tiny1": ("f4_losses_tiny1_neg0", ((451, 4, 64), (452, [3, 12, 20, 7], 20, 256))),
}
SIZES = [(48, 80), (100, 61), (64, 64), (33, 50)]


@pytest.mark.parametrize("name", CASES)
def test_whole_answer(name):
    stored = oracle.fixture("f6_forward_test")
    targets, inputs = oracle.fixture(CASES[name][0]), CASES[name][1]
    graph, state = nnx.split(models.load(models.CONFIGS[name], name))

    def run(state, *batch):
        outputs = nnx.merge(graph, state)(*batch)
        return outputs, postprocess(outputs, EvalConfig(), "official")

    outputs, got = jax.tree.map(np.asarray, jax.jit(run)(state, *models.inputs(*inputs)))
    logits = np.concatenate([outputs.mask_logits, outputs.global_mask_logits[:, None]], axis=1)
    unsure = (np.abs(logits) < 1e-4).any(1)  # the tolerance of the model's masks
    covered = []
    for i, (height, width) in enumerate(SIZES):
        rows = got.scores[i] > 0
        scale = np.array([width, height, width, height]) / 64
        models.assert_close(got.boxes_xyxy[i][rows] * scale, stored[f"{name}_s{i}_boxes"], 2e-6 * 100, "boxes")
        models.assert_close(got.scores[i][rows], stored[f"{name}_s{i}_scores"], 2e-5, "scores")
        bits, shape = stored[f"{name}_s{i}_mask_bits"], stored[f"{name}_s{i}_mask_shape"]
        assert tuple(shape) == (height, width)
        sure = ~resize_mask(unsure[i], height, width)
        assert sure.mean() > 0.98
        want = np.unpackbits(bits)[: height * width].reshape(shape).astype(bool)
        np.testing.assert_array_equal(resize_mask(got.mask[i], height, width) & sure, want & sure)
        boxes = targets[f"target_boxes_s{i}_f64"]
        if len(boxes):
            covered.append(coverage(got.points_xy[i], boxes))
    if name == "tiny":  # the original's one-query model compares with the boxes of the whole batch instead
        np.testing.assert_allclose(covered, stored["tiny_cover"], rtol=1e-6)
