"""The rule engine alone: both directions of every transform, and everything that can be wrong with a file or a table."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convert import beit3, export, instancevg, rules
from convert.rules import Ignore, Rule, RuleTable
from instancevg_jax.config import Config, tiny
from instancevg_jax.errors import InputError

RANDOM = np.random.default_rng(0)
TABLE = RuleTable(
    rules=[
        Rule("layers.{i}.fc.weight", "blocks.{i}.fc.kernel", "transpose"),
        Rule("layers.{i}.fc.bias", "blocks.{i}.fc.bias"),
        Rule("box.0.{j}.weight", "box.{j}.kernel", "transpose"),
    ],
    aliases=[("box.{i}.", "box.0.")],
    ignores=[Ignore(r"mask_token|.*\.steps", "not needed")],
)
EXPECTED = {"blocks.0.fc.kernel": (3, 2), "blocks.0.fc.bias": (2,), "box.0.kernel": (2, 4)}


def state():
    values = {
        "layers.0.fc.weight": RANDOM.standard_normal((2, 3)).astype(np.float32),
        "layers.0.fc.bias": RANDOM.standard_normal(2).astype(np.float16),
        "box.0.0.weight": RANDOM.standard_normal((4, 2)).astype(np.float32),
        "mask_token": np.ones(2, np.float16),
        "bn.steps": np.array(5),
    }
    return values | {"box.1.0.weight": values["box.0.0.weight"].copy()}


@pytest.mark.parametrize(
    ("transform", "shape", "ours"),
    [
        ("none", (2, 3), (2, 3)),
        ("transpose", (2, 3), (3, 2)),
        ("conv", (5, 4, 3, 2), (3, 2, 4, 5)),
        ("conv_transpose", (4, 5, 2, 3), (4, 2, 3, 5)),
        ("squeeze_conv", (5, 4, 1, 1), (4, 5)),
        ("patch", (5, 3, 4, 4), (48, 5)),
    ],
)
def test_transform_and_its_inverse(transform, shape, ours):
    x = RANDOM.standard_normal(shape)
    y = rules.FORWARD[transform](x)
    assert y.shape == ours
    assert np.array_equal(rules.BACKWARD[transform](y), x)
    assert rules.source_shape(ours, transform) == shape


def test_patch_kernel_equals_the_convolution():
    kernel, image = RANDOM.standard_normal((5, 3, 4, 4)), RANDOM.standard_normal((4, 4, 3))
    assert np.allclose(image.reshape(-1) @ rules.FORWARD["patch"](kernel), np.einsum("dcyx,yxc->d", kernel, image))


def test_both_directions():
    source = state()
    params = rules.to_target(source, TABLE, EXPECTED)
    assert {path: value.shape for path, value in params.items()} == EXPECTED
    assert all(value.dtype == np.float32 and value.flags.c_contiguous for value in params.values())
    back = rules.to_source(params, TABLE, rules.ignored_values(source, TABLE), copies=2)
    assert back.keys() == source.keys()
    assert all(np.array_equal(back[key], source[key]) for key in source)
    assert back["box.1.0.weight"] is back["box.0.0.weight"]


def test_summary_counts_every_key():
    found = rules.assign(state(), TABLE, EXPECTED)
    rows = dict(line.rsplit(maxsplit=1) for line in found.summary().splitlines())
    assert rows == {
        "converted": "3",
        "aliases, equal to another key": "1",
        "left out: not needed": "2",
        "missing": "0",
        "unexpected": "0",
        "wrong shape": "0",
    }


def test_everything_wrong_is_listed_in_the_originals_names():
    source = state()
    source["layers.0.fc.wieght"] = source.pop("layers.0.fc.weight")
    source["layers.7.fc.bias"] = np.zeros(2, np.float32)
    source["box.0.0.weight"] = np.zeros((4, 3), np.float32)
    with pytest.raises(
        InputError, match=r"f\.pth does not fit the model: 1 missing, 2 unexpected, 1 of a wrong shape"
    ) as error:
        rules.to_target(source, TABLE, EXPECTED, "f.pth")
    assert "\n" not in str(error.value)
    assert rules.assign(source, TABLE, EXPECTED).problems() == [
        "missing: layers.0.fc.weight (nearest: layers.0.fc.wieght)",
        "unexpected: layers.0.fc.wieght (nearest: layers.0.fc.weight)",
        "unexpected: layers.7.fc.bias (nearest: layers.0.fc.weight)",
        "wrong shape: box.0.0.weight is [4, 3], expected [4, 2]",
    ]


def test_alias_must_be_equal():
    source = state()
    source["box.1.0.weight"][0, 0] += 1
    with pytest.raises(InputError, match=r"box\.1\.0\.weight should equal box\.0\.0\.weight"):
        rules.to_target(source, TABLE, EXPECTED)


def test_wildcards_are_plain_integers():
    for key in ("layers.x.fc.bias", "layers..fc.bias", "layers.00.fc.bias", "layers.-1.fc.bias", "Xlayers.0.fc.bias"):
        assert rules.assign({key: np.zeros(2)}, TABLE, EXPECTED).unexpected == [key]


def test_tables_that_contradict_themselves():
    with pytest.raises(ValueError, match="wildcards"):
        Rule("a.{i}", "b")
    twice = RuleTable([*TABLE.rules, Rule("layers.0.fc.bias", "other")])
    with pytest.raises(ValueError, match=r"2 entries of the table claim layers\.0\.fc\.bias"):
        rules.assign(state(), twice, EXPECTED)
    both = RuleTable([Rule("a", "x"), Rule("b", "x")])
    with pytest.raises(ValueError, match=r"2 rules fill the parameter x|both fill x"):
        rules.assign({"a": np.zeros(1), "b": np.zeros(1)}, both, {"x": (1,)})
    with pytest.raises(ValueError, match="0 rules fill the parameter y"):
        rules.assign({}, both, {"y": (1,)})
    with pytest.raises(ValueError, match="is not a key that the table leaves out"):
        rules.to_source({}, TABLE, {"unknown": np.zeros(1)}, copies=1)


def test_many_mismatches_take_no_time():
    """A foreign file with thousands of names: listed in full, without the quadratic search for candidates."""
    source = {f"encoder.block.{i}.attention.weight": np.zeros(1, np.float32) for i in range(5000)}
    problems = rules.assign(source, TABLE, EXPECTED).problems()
    assert len(problems) == 5003
    assert not any("nearest" in line for line in problems)


REAL = {"instancevg": instancevg.TABLE, "beit3": beit3.TABLE}
SHAPES = export.expected_shapes(Config(model=tiny()))
WORDS = sorted({
    *(part for table in REAL.values() for rule in table.rules for part in rule.source.split(".") if "{" not in part),
    *(part for key in export.unused_tensors(Config(model=tiny())) for part in key.split(".")),
    "0", "1", "2", "7", "00", "-1", "", "{i}", "weight", "running_mean",
})  # fmt: skip
keys = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(".".join)
# names of one table with parts exchanged, so that most of a key is right
near = st.tuples(
    st.sampled_from([rule.source.replace("{i}", "1").replace("{j}", "0") for rule in instancevg.TABLE.rules]),
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from(WORDS)), max_size=2),
).map(lambda pair: exchanged(*pair))


def exchanged(key: str, changes: list[tuple[int, str]]) -> str:
    parts = key.split(".")
    for place, word in changes:
        parts[place % len(parts)] = word
    return ".".join(parts)


@pytest.mark.parametrize("table", REAL)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(keys | near, max_size=8))
def test_any_key_has_one_place(table, names):
    """Whatever a file's keys are called: each is counted once, and nothing raises."""
    state = dict.fromkeys(names, np.zeros((2, 2), np.float32))
    found = rules.assign(state, REAL[table], SHAPES if table == "instancevg" else EXPECTED_BACKBONE)
    placed = [key for key, _ in found.assigned.values()] + [*found.aliases, *found.ignored, *found.unexpected]
    assert sorted(placed) == sorted(state)
    assert found.summary()


EXPECTED_BACKBONE = {path: shape for path, shape in SHAPES.items() if path.startswith("backbone.")}


@pytest.mark.parametrize(
    "key",
    [
        "head.class_embed.1.num_batches_tracked",
        "head.bbox_embed.2.layers.0.num_batches_tracked",
        "head.proj_pixel_level_cons.num_batches_tracked",
        "head.class_embed.1.bias.0",
        "head.bbox_embed.1.layers.7.weight",
    ],
)
def test_keys_that_look_like_two_things(key):
    found = rules.assign({key: np.zeros(1)}, instancevg.TABLE, SHAPES)
    ignored = key.startswith("head.proj_pixel")
    assert list(found.ignored if ignored else found.unexpected) == [key]
    assert not found.aliases
