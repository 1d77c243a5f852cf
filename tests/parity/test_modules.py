"""F2: each module of the head by itself, on maps that the whole model never makes (odd, non-square, few tokens)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instancevg_jax.models import layers
from instancevg_jax.models.deformable import deformable_attention
from instancevg_jax.models.queries import select_channels, select_points, select_tokens
from instancevg_jax.models.resize import resize_bilinear
from tests import oracle
from tests.parity import models

ATOL = 2e-5


def nhwc(x: np.ndarray) -> np.ndarray:
    return x.transpose(0, 2, 3, 1)


def nchw(x) -> np.ndarray:
    return np.asarray(x).transpose(0, 3, 1, 2)


def normal(name: str, seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return oracle.recipe()._rng(name, seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("case", "size", "up_size"),
    [("b4", (2, 4, 4), (64, 64)), ("br", (2, 3, 5), (48, 80)), ("b20", (1, 20, 20), (100, 90))],
)
def test_pyramid_and_mask_decoder(case, size, up_size):
    expected = oracle.fixture("f2_neck_unet")
    model = models.model("tiny")
    seed = {"b4": 301, "b20": 302, "br": 303}[case]
    x = oracle.recipe().smooth_field(seed, (size[0], 256, *size[1:]))
    pyramid = model.pyramid(jnp.asarray(nhwc(x)))
    pixels = model.mask_decoder(pyramid, train=False)
    for name, value in [*((f"neck{i}", level) for i, level in enumerate(pyramid)), ("unet", pixels)]:
        value = nchw(value)
        if case == "b20":
            models.assert_close(value[:, ::8, ::2, ::2], expected[f"b20_{name}_s"], ATOL, name)
            np.testing.assert_allclose(models.stats(value), expected[f"b20_{name}_stats_f64"], rtol=1e-4, atol=1e-2)
        else:
            halved = name in ("neck0", "unet")
            models.assert_close(value[:, ::2] if halved else value, expected[f"{case}_{name}"], ATOL, name)
    mask = model.global_mask_head(pixels)
    models.assert_close(nchw(mask), expected[f"{case}_seg"], ATOL, "global mask")
    models.assert_close(nchw(resize_bilinear(mask, *up_size)), expected[f"{case}_seg_up"], ATOL, "enlarged mask")
    existence = model.existence_head(pixels.reshape(size[0], -1, 256)).mean(1)
    models.assert_close(existence, expected[f"{case}_nt"], ATOL, "existence")


def test_sine_positions():
    expected = oracle.fixture("f2_posemb")
    for height, width in ((2, 2), (4, 4), (5, 7), (20, 20)):
        ours = layers.sine_positions(np.ones((height, width), bool), 256).transpose(2, 0, 1)[None]
        theirs = expected[f"sine2d_{height}x{width}"]
        models.assert_close(ours[:, :: 256 // theirs.shape[1]], theirs, ATOL, f"{height}x{width}")
    valid = np.ones((4, 5), bool)
    valid[3], valid[:, 4] = False, False
    ours = layers.sine_positions(valid, 256).transpose(2, 0, 1)[None]
    models.assert_close(ours, expected["sine2d_padded_4x5"], ATOL, "padded")


def test_inverse_sigmoid():
    expected = oracle.fixture("f2_posemb")
    models.assert_close(layers.inverse_sigmoid(jnp.asarray(expected["invsig_x"])), expected["invsig_y"], ATOL, "y")


QUERY_CASES = {  # settings, image seed, feature grid
    "a": ({}, 409, (4, 4)),
    "b": ({"point_distance_weight": 0.1}, 410, (4, 4)),
    "c": ({"point_selection": "attention"}, 411, (4, 4)),
    "d": ({"text_selection": "channel"}, 412, (4, 4)),
    "e": ({}, 413, (20, 20)),
    "f": ({"num_queries": 1}, 414, (20, 20)),
    "g": ({}, 415, (5, 7)),
}


@pytest.mark.parametrize("case", QUERY_CASES)
def test_instance_queries(case):
    expected = oracle.fixture("f2_aqsm")
    settings, seed, grid = QUERY_CASES[case]
    config = dataclasses.replace(models.CONFIGS["tiny"], **settings)
    module = models.load(config, "tiny").queries
    text = normal("aqsm.lan", 310, (8, 50, 256))
    image = 2 * oracle.recipe().smooth_field(seed, (8, 256, *grid), terms=8)
    mask = expected["mask50"] == 0
    queries, points, point_map, attention = jax.jit(module)(text, mask, nhwc(image))
    if config.text_selection == "token":
        words, word_mask = select_tokens(jnp.asarray(text), mask, config.num_queries)
    else:
        words, word_mask = select_channels(jnp.asarray(text), config.num_queries)
    models.assert_close(words[..., ::16], expected[f"{case}_sel_feat_s"], 1e-6, "selected words")
    np.testing.assert_array_equal(np.asarray(word_mask), expected[f"{case}_sel_mask"] == 1)
    models.assert_close(points, expected[f"{case}_points"], 1e-6, "points")
    models.assert_close(point_map, expected[f"{case}_attn_query"], ATOL, "point map")
    stride = 2 if grid == (20, 20) else 1
    models.assert_close(attention[..., ::stride, ::stride], expected[f"{case}_attn_map"], ATOL, "attention")
    models.assert_close(queries, expected[f"{case}_pos_feat"], ATOL, "queries")


@pytest.mark.parametrize(("case", "weight"), [("4x4", 0.003), ("20x20", 0.003), ("5x7", 0.5), ("20x20big", 0.5)])
def test_point_selection(case, weight):
    expected = oracle.fixture("f2_point_selector")
    assert expected[f"margin_{case}"].min() > 0
    chosen = select_points(jnp.asarray(expected[f"map_{case}"]), 10, weight)
    np.testing.assert_array_equal(np.asarray(chosen), expected[f"idx_{case}"])


def test_deformable_attention_and_gradients():
    expected = oracle.fixture("f2_msdeform")
    values = normal("val", 321, (2, 340, 8, 32))
    shapes = [(16, 16), (8, 8), (4, 4), (2, 2)]

    def run(values, locations, weights):
        return deformable_attention(values, shapes, locations, weights)

    args = (values, expected["core_loc"], expected["core_aw"])
    models.assert_close(jax.jit(run)(*args), expected["core_out"], ATOL, "output")
    cotangent = normal("g", 321, (2, 5, 256))
    grads = jax.jit(lambda *args: jax.vjp(run, *args)[1](cotangent))(*args)
    models.assert_close(grads[0][:, ::4], expected["core_grad_val_s"], ATOL, "gradient of values")
    models.assert_close(grads[2], expected["core_grad_aw"], ATOL, "gradient of weights")
    scale = np.abs(expected["core_grad_loc"]).max()
    models.assert_close(grads[1] / scale, expected["core_grad_loc"] / scale, ATOL, "gradient of locations")


def test_deformable_attention_module():
    expected = oracle.fixture("f2_msdeform")
    module = models.model("tiny").decoder.layers[0].cross_attention
    query, positions = normal("q", 320, (2, 10, 256)), normal("qp", 320, (2, 10, 256))
    memory = normal("v", 320, (2, 340, 256))
    shapes = [(16, 16), (8, 8), (4, 4), (2, 2)]
    real = expected["pad"] == 0
    for key, references, memory_mask in (
        ("out_ref2", "ref", None),
        ("out_ref2_pad", "ref", real),
        ("out_ref4", "ref4", None),
    ):
        out = module(query + positions, memory, shapes, expected[references], memory_mask=memory_mask)
        models.assert_close(query + out, expected[key], ATOL, key)


def test_decoder_and_heads():
    expected = oracle.fixture("f2_decoder")
    model = models.model("tiny")
    recipe = oracle.recipe()
    positions = model.query_positions(expected["points"])
    models.assert_close(positions, expected["query_pos"], ATOL, "query positions")
    pyramid = [nhwc(recipe.smooth_field(330 + i, (2, 256, s, s))) for i, s in enumerate((16, 8, 4, 2))]
    states, references = model.decoder(normal("dqf", 320, (2, 10, 256)), positions, expected["points"], pyramid)
    models.assert_close(references, expected["init_reference"], 1e-6, "references")
    models.assert_close(states, expected["inter_states"], ATOL, "states")
    logits, boxes = model.detect(states, references)
    models.assert_close(logits, expected["logits"], ATOL, "class logits")
    models.assert_close(boxes, expected["boxes"], 2e-6, "boxes")
