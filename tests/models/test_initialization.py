"""How a network starts that is trained from scratch.

`EXPECTED` states the first values of every parameter by name, in numbers, independently of models/initialization.py. Print it,
next to what was drawn: `python -m tests.models.test_initialization`.
"""

import dataclasses
import functools
import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx

from configs import grefcoco, refcoco
from convert.instancevg import TABLE
from convert.rules import source_key
from instancevg_jax.models import initialization, layers
from instancevg_jax.models.beit3 import BEiT3
from instancevg_jax.models.instancevg import InstanceVG
from instancevg_jax.runtime.trees import flatten
from tests import small

ORIGINAL = Path(__file__).parent / "original_first_values.json"
MODELS = {"grefcoco": grefcoco.get_config().model, "refcoco:large": refcoco.get_config("large").model}
WIDTH = {"grefcoco": 768, "refcoco:large": 1024}
EXPERT = "backbone.blocks.*.(vision|text)"
LAYER = "decoder.layers.(0|1|2)"

# Names; family and scale (bound of "uniform", standard deviation of "normal", value of "constant"). "D" is the backbone's width.
EXPECTED = [
    ("backbone.class_token", "constant", 0),
    ("backbone.(vision|text)_positions", "normal", 1),
    ("backbone.text_embed.embedding", "normal", "1/sqrt(D)"),
    ("backbone.patch_embed.(kernel|bias)", "uniform", 1 / math.sqrt(768)),
    (f"{EXPERT}.(query|key|value|out|fc1|fc2).kernel", "truncated normal", 0.02),
    (f"{EXPERT}.(query|key|value|out|fc1|fc2).bias", "constant", 0),
    (f"{EXPERT}.(attention|attention_inner|mlp|mlp_inner)_norm.scale", "constant", 1),
    (f"{EXPERT}.(attention|attention_inner|mlp|mlp_inner)_norm.bias", "constant", 0),
    ("backbone.(vision|text)_norm.scale", "constant", 1),
    ("backbone.(vision|text)_norm.bias", "constant", 0),
    ("(image|text)_proj.kernel", "uniform", "1/sqrt(D)"),
    ("query_positions.(kernel|bias)", "uniform", 1 / math.sqrt(2)),
    ("(class_head|global_mask_head).(kernel|bias)", "uniform", 1 / 16),
    ("existence_head.layers.(0|1|2).(kernel|bias)", "uniform", 1 / 16),
    ("box_head.layers.(0|1|2).kernel", "uniform", 1 / 16),
    ("box_head.layers.(0|1).bias", "uniform", 1 / 16),
    ("box_head.layers.2.bias", "box bias", 1 / 16),
    ("pyramid.(up4_first|up2).(kernel|bias)", "uniform", 1 / math.sqrt(128 * 4)),
    ("pyramid.up4_second.(kernel|bias)", "uniform", 1 / math.sqrt(64 * 4)),
    ("pyramid.levels.(0|1|2|3).lateral.kernel", "normal", math.sqrt(2 / 256)),
    ("pyramid.levels.(0|1|2|3).conv.kernel", "normal", math.sqrt(2 / (9 * 256))),
    ("pyramid.(up4_norm|levels.(0|1|2|3).(lateral|conv)_norm).scale", "constant", 1),
    ("pyramid.(up4_norm|levels.(0|1|2|3).(lateral|conv)_norm).bias", "constant", 0),
    ("mask_decoder.stages.(0|1|2).conv1.kernel", "uniform", 1 / math.sqrt(9 * 512)),
    ("mask_decoder.stages.(0|1|2).conv2.kernel", "uniform", 1 / math.sqrt(9 * 256)),
    ("mask_decoder.stages.(0|1|2).norm(1|2).scale", "constant", 1),
    ("mask_decoder.stages.(0|1|2).norm(1|2).bias", "constant", 0),
    ("queries.mlp.layers.0.(kernel|bias)", "uniform", 1 / math.sqrt(512)),
    ("queries.mlp.layers.(1|2).(kernel|bias)", "uniform", 1 / 16),
    ("queries.text_to_image.(self|cross)_attention.in_proj.kernel", "uniform", math.sqrt(6 / (256 + 768))),
    ("queries.text_to_image.(self|cross)_attention.out_proj.kernel", "uniform", 1 / 16),
    ("queries.text_to_image.(self|cross)_attention.(in_proj|out_proj).bias", "constant", 0),
    ("queries.text_to_image.mlp.fc1.(kernel|bias)", "uniform", 1 / 16),
    ("queries.text_to_image.mlp.fc2.(kernel|bias)", "uniform", 1 / math.sqrt(512)),
    ("queries.text_to_image.(norms.(0|1|2)|final_norm).scale", "constant", 1),
    ("queries.text_to_image.(norms.(0|1|2)|final_norm).bias", "constant", 0),
    ("decoder.reference_points.kernel", "normal", math.sqrt(2 / (256 + 2))),
    ("decoder.reference_points.bias", "constant", 0),
    (f"{LAYER}.self_attention.in_proj.kernel", "uniform", math.sqrt(6 / (256 + 768))),
    (f"{LAYER}.self_attention.out_proj.kernel", "uniform", math.sqrt(6 / (256 + 256))),
    (f"{LAYER}.self_attention.(in_proj|out_proj).bias", "constant", 0),
    (f"{LAYER}.cross_attention.(value_proj|output_proj).kernel", "uniform", math.sqrt(6 / (256 + 256))),
    (f"{LAYER}.cross_attention.(value_proj|output_proj).bias", "constant", 0),
    (f"{LAYER}.cross_attention.attention_weights.(kernel|bias)", "constant", 0),
    (f"{LAYER}.cross_attention.sampling_offsets.kernel", "constant", 0),
    (f"{LAYER}.cross_attention.sampling_offsets.bias", "ring", 4),
    (f"{LAYER}.mlp.(fc1|fc2).kernel", "uniform", math.sqrt(6 / (256 + 1024))),
    (f"{LAYER}.mlp.fc1.bias", "uniform", 1 / 16),
    (f"{LAYER}.mlp.fc2.bias", "uniform", 1 / 32),
    (f"{LAYER}.norms.(0|1|2).scale", "constant", 1),
    (f"{LAYER}.norms.(0|1|2).bias", "constant", 0),
]
# Copies of one module in the original: equal first values.
EQUAL = [
    *(
        [f"queries.text_to_image.{which}_attention.{name}.kernel" for which in ("self", "cross")]
        for name in ("in_proj", "out_proj")
    ),
    *([f"decoder.layers.{i}.mlp.{name}.bias" for i in range(3)] for name in ("fc1", "fc2")),
]


def expected(name: str, width: int) -> tuple[str, float]:
    """Family and scale of a parameter; fails unless exactly one row names it."""
    rows = [row for row in EXPECTED if re.fullmatch(row[0].replace("*", r"\d+"), name)]
    assert len(rows) == 1, f"{len(rows)} rows of EXPECTED name {name}"
    _, family, scale = rows[0]
    return family, 1 / math.sqrt(width) if scale == "1/sqrt(D)" else scale


def distribution(family: str, scale: float):
    """scipy's distribution of a family."""
    if family == "uniform":
        return scipy.stats.uniform(-scale, 2 * scale)
    return scipy.stats.norm(0, scale) if family == "normal" else scipy.stats.truncnorm(-1, 1, 0, scale)


def shapes(model) -> dict[str, tuple[int, ...]]:
    """Every parameter of a network by its name."""
    abstract = nnx.eval_shape(lambda: InstanceVG(model, rngs=nnx.Rngs(0)))
    return {name: leaf.shape for name, leaf in flatten(nnx.state(abstract, nnx.Param)).items()}


@functools.cache
def drawn(config: str) -> dict[str, np.ndarray]:
    """First values of an official network, for speed with one block of BEiT-3 and few words."""
    model = InstanceVG(dataclasses.replace(MODELS[config], depth=1, vocab_size=2000), rngs=nnx.Rngs(7))
    return {name: np.asarray(value).ravel() for name, value in flatten(nnx.state(model, nnx.Param)).items()}


@pytest.mark.parametrize("config", MODELS)
def test_every_parameter_is_listed(config):
    """At full depth; and what is drawn below, with one block, has every kind of name."""
    assert MODELS[config].initialization == "official"
    names = shapes(MODELS[config])
    for name in names:
        expected(name, WIDTH[config])
    first_block = {re.sub(r"blocks.\d+", "blocks.0", name) for name in names}
    assert first_block == set(drawn(config))
    for pattern, *_ in EXPECTED:
        assert any(re.fullmatch(pattern.replace("*", r"\d+"), name) for name in names), f"{pattern} names nothing"


@pytest.mark.parametrize("config", MODELS)
def test_first_values_have_the_stated_distribution(config):
    """Mean, standard deviation, extremes and a Kolmogorov-Smirnov test of each parameter."""
    rng = np.random.default_rng(0)
    for name, values in drawn(config).items():
        family, scale = expected(name, WIDTH[config])
        if family == "constant":
            assert (values == scale).all(), name
        elif family == "box bias":
            assert (abs(values[:2]) < scale).all()
            assert (values[:2] != 0).all()
            assert (values[2:] == -2).all()
        elif family == "ring":
            pattern = values.reshape(8, 4, 4, 2)  # heads, levels, points, (x, y)
            steps = np.arange(1, 5)[:, None]
            np.testing.assert_allclose(pattern[0], np.broadcast_to(steps * [1, 0], (4, 4, 2)), atol=1e-6)
            np.testing.assert_allclose(pattern[3], np.broadcast_to(steps * [-1, 1], (4, 4, 2)), atol=1e-6)
        else:
            stated, count = distribution(family, scale), len(values)
            low, high = map(np.float32, stated.support())  # as the values are stored
            assert low <= values.min(), name
            assert values.max() <= high, name
            assert abs(values.mean()) <= 5 * stated.std() / math.sqrt(count), name
            if count >= 100:
                assert abs(values.std() / stated.std() - 1) <= 5 / math.sqrt(2 * count), name
                assert max(-values.min(), values.max()) >= stated.ppf(1 - 5 / count), name
            some = rng.choice(values, min(count, 20_000), replace=False)
            assert scipy.stats.kstest(some, stated.cdf).pvalue > 1e-4, name


def test_the_original_has_the_stated_distribution():
    """The original's own statistics, so that EXPECTED is not only our reading of its code."""
    original = json.loads(ORIGINAL.read_text())
    probabilities = np.array([0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99])
    for name, values in drawn("grefcoco").items():
        least, most, mean, std, *quantiles = original.pop(source_key(name, TABLE)[0])
        family, scale = expected(name, 768)
        if family in ("constant", "ring", "box bias"):
            low, high = values.min(), (scale if family == "box bias" else values.max())
            np.testing.assert_allclose(least, low, atol=1e-6, err_msg=name)
            assert most <= high + 1e-6, name
            continue
        stated, count = distribution(family, scale), 3 * min(len(values), 100_000)  # quantiles are of a sample
        low, high = stated.support()
        assert low * (1 + 1e-5) <= least, name
        assert most <= high * (1 + 1e-5), name
        assert abs(mean) <= 5 * stated.std() / math.sqrt(count), name
        if len(values) >= 100:
            assert abs(std / stated.std() - 1) <= 6 / math.sqrt(count), name
            error = 6 * np.sqrt(probabilities * (1 - probabilities) / count) + 2 / count
            assert (abs(stated.cdf(quantiles) - probabilities) <= error).all(), name
    left = {name for name in original if "running_" not in name and name != "about"}
    assert not left


def test_copies_start_equal_and_nothing_else_does():
    values = drawn("grefcoco")
    copies = {name for group in EQUAL for name in group}
    for first, *others in EQUAL:
        assert all(np.array_equal(values[first], values[other]) for other in others)
    seen = {}
    for name, value in values.items():
        if value.std() and name not in copies and not name.endswith("sampling_offsets.bias"):
            other = seen.setdefault(value.tobytes(), name)
            assert other == name, f"{name} equals {other}"


def test_a_seed_decides_every_value():
    first, again, other = (
        nnx.state(InstanceVG(small.config(initialization="official").model, rngs=nnx.Rngs(seed)), nnx.Param)
        for seed in (3, 3, 4)
    )
    assert jax.tree.all(jax.tree.map(jnp.array_equal, first, again))
    assert not jnp.array_equal(first["class_head"]["kernel"][...], other["class_head"]["kernel"][...])


def test_a_parameter_without_a_rule_is_refused():
    with pytest.raises(ValueError, match=r"0 rules of initialization\.OFFICIAL match the parameter new_head.kernel"):
        initialization.rule("new_head.kernel")


@pytest.mark.parametrize(("initialization", "near_and_alike_first"), [("local", True), ("normal", False)])
def test_attention_starts_local_only_where_asked(initialization, near_and_alike_first):
    """In a picture of one colour, the weight that patches of the first block give to themselves and their neighbours."""
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


def test_a_local_start_keeps_queries_and_keys_in_separate_buffers():
    """A training step donates its state, which forbids two leaves in one buffer."""
    backbone = BEiT3(small.config(initialization="local").model, rngs=nnx.Rngs(0))
    for block in backbone.blocks:
        for expert in (block.vision, block.text):
            query, key = expert.query.kernel[...], expert.key.kernel[...]
            assert jnp.array_equal(query, key)
            assert query.unsafe_buffer_pointer() != key.unsafe_buffer_pointer()


def print_table() -> None:
    """Every parameter of both configs: stated distribution, and mean, standard deviation and extremes of one draw."""
    for config, model in MODELS.items():
        print(f"\n{config}\n{'parameter':62}{'shape':>20}  {'stated':>24}{'mean':>11}{'std':>10}{'min':>10}{'max':>10}")
        for name, shape in shapes(dataclasses.replace(model, depth=1)).items():
            family, scale = expected(name, WIDTH[config])
            values = drawn(config)[name]
            figures = f"{values.mean():11.5f}{values.std():10.5f}{values.min():10.5f}{values.max():10.5f}"
            size = " x ".join(map(str, shape))
            print(f"{name.replace('blocks.0', 'blocks.*'):62}{size:>20}  {f'{family} {scale:.5f}':>24}{figures}")


if __name__ == "__main__":
    print_table()
