"""Settings that cannot work are named before anything is built."""

import dataclasses
import json

import pytest

from instancevg_jax import config as configs
from instancevg_jax.config import Config, ModelConfig
from instancevg_jax.errors import InputError


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"image_height": 100}, "model.image_height is 100, model.patch_size 16; expected a multiple"),
        ({"num_heads": 5}, "model.width is 768, model.num_heads 5"),
        ({"num_heads": 0}, "model.num_heads is 0; expected at least 1"),
        ({"image_width": -320}, "model.image_width is -320"),
        ({"decoder_heads": 3}, "model.head_width is 256, model.decoder_heads 3"),
        ({"head_width": 6, "decoder_heads": 2}, "model.head_width is 6; expected a multiple of 4"),
        ({"width": 6, "num_heads": 2, "initialization": "local"}, "model.width is 6; expected a multiple of 4"),
        (
            {"initialization": "orthogonal"},
            "model.initialization is 'orthogonal'; expected one of official, normal, local",
        ),
        ({"num_queries": 51}, "model.num_queries is 51 with 50 tokens; expected at most 50"),
        (
            {"image_height": 32, "image_width": 32, "point_selection": "attention"},
            "model.num_queries is 10 with 4 patches; expected at most 4",
        ),
        ({"image_height": 16, "num_queries": 1}, "pictures of 1 x 20 patches"),
        ({"max_tokens": 31, "max_text_positions": 32}, "expected at most 30 tokens"),
        ({"drop_path": 1.5}, "model.drop_path is 1.5; expected 0 to 1"),
        ({"point_selection": "far"}, "model.point_selection is 'far'; expected one of distance, attention"),
        ({"text_selection": "word"}, "model.text_selection is 'word'"),
    ],
)
def test_sizes_that_do_not_fit_are_named(change, says):
    """From a file too, which is named."""
    wrong = Config(model=dataclasses.replace(ModelConfig(), **change))
    with pytest.raises(InputError, match=says):
        configs.check(wrong)
    with pytest.raises(InputError, match=f"some.json: .*{says}"):
        configs.from_json(configs.to_json(wrong), "some.json")


def test_every_value_of_several_must_be_a_choice():
    wrong = Config(data=configs.DataConfig(shapes_turns=("basic", "hard")))
    with pytest.raises(InputError, match=r"data\.shapes_turns is 'hard'; expected one of basic, full, outlines"):
        configs.check(wrong)
    with pytest.raises(InputError, match=r"data\.shapes_turns is empty; expected at least one of"):
        configs.check(Config(data=configs.DataConfig(shapes_turns=())))


@pytest.mark.parametrize(
    "name", [name for name, (about, _) in configs.fields(Config()).items() if about.metadata["choices"]]
)
def test_every_choice_is_checked(name):
    config = Config()
    section, field = name.split(".")
    setattr(getattr(config, section), field, "half")
    with pytest.raises(InputError, match=f"{name} is 'half'; expected one of "):
        configs.check(config)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_every_number_must_be_finite(value):
    for name, (_, default) in configs.fields(Config()).items():
        if isinstance(default, float):
            config = Config()
            section, field = name.split(".")
            setattr(getattr(config, section), field, value)
            with pytest.raises(InputError, match=rf"{name} is (nan|-?inf); expected a finite number"):
                configs.check(config)


def test_every_field_says_what_it_does():
    for name, (about, _) in configs.fields(Config()).items():
        assert about.metadata["text"].endswith("."), name


def old_json(**removed: object) -> str:
    """A config.json with settings that no longer exist."""
    raw = json.loads(configs.to_json(configs.Config()))
    raw["data"] |= removed
    return json.dumps(raw)


def test_removed_settings_are_ignored_at_the_value_at_which_they_did_nothing():
    old = old_json(jitter=False, jitter_scales=[0.1, 2.0], jitter_flip=0.7, num_processes=0)
    assert configs.from_json(old) == configs.Config()


@pytest.mark.parametrize(("name", "value"), [("jitter", True), ("num_processes", 2)])
def test_removed_settings_that_did_something_are_refused(name: str, value: object):
    with pytest.raises(
        InputError, match=rf"old.json: data\.{name} is {value}; this setting was removed, expected .* or no"
    ):
        configs.from_json(old_json(**{name: value}), "old.json")
