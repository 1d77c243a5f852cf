"""From a config to training batches: the curriculum of the embedded data; cache, jitter and processes of prepared data."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import shapes as shapes_config
from data_pipelines import splits
from data_pipelines.augment import Jitter
from data_pipelines.prepare import prepare
from data_pipelines.shapes.dataset import ShapesDataset
from instancevg_jax.config import Config, DataConfig, TrainConfig, tiny
from instancevg_jax.errors import InputError
from instancevg_jax.types import Batch
from tests import oracle
from tests.data_pipelines import make

SPLIT_SIZE = 6


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Six prepared training records of two pictures, and their config."""
    for name in ("0.jpg", "1.jpg"):
        make.picture(tmp_path / "images", name, 90 * int(name[0]))
    lines = [
        {
            "image": f"{i % 2}.jpg",
            "expressions": "a red dog",
            "objects": [{"box": [10, 10, 30, 30], "mask": make.POLYGON}],
        }
        for i in range(SPLIT_SIZE)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    prepare("custom", [tmp_path / "a.jsonl"], tmp_path / "images", tmp_path / "data")
    spm = tmp_path / "tiny.spm"
    spm.write_bytes(oracle.fixture("f8_tokenizer")["spm_model_bytes"].tobytes())
    data = DataConfig(name="custom", data_dir=str(tmp_path / "data"), tokenizer=str(spm), max_targets=2)
    return Config(model=tiny(), data=data, train=TrainConfig(batch_size=SPLIT_SIZE))


def epochs(config: Config, count: int = 2) -> list[Batch]:
    stream = splits.train_batches(config, splits.open_split(config, "train", splits.load_tokenizer(config)))
    return [next(stream) for _ in range(count)]


def assert_equal(ours: list[Batch], theirs: list[Batch]) -> None:
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("turns", [("basic", "full"), ("outlines", "basic"), ("basic", "outlines", "full")])
def test_curriculum_goes_from_one_level_to_all_by_turns(turns):
    config = shapes_config.get_config()
    config.train.batch_size = 8
    config.data.shapes_turns, config.data.shapes_curriculum = turns, 4
    tokenizer = splits.load_tokenizer(config)
    batch = next(splits.train_batches(config, splits.open_split(config, "train", tokenizer)))
    levels = [turns[0]] * 4 + [turns[i % len(turns)] for i in range(4, 8)]
    expected = [ShapesDataset("train", level).describe(i).expression for i, level in enumerate(levels)]
    tokens = [tokenizer.encode(expression, config.model.max_tokens)[0] for expression in expected]
    np.testing.assert_array_equal(np.asarray(batch.token_ids), np.stack(tokens))


def test_the_cache_changes_no_batch_and_is_shared_out_among_processes(config: Config):
    tokenizer = splits.load_tokenizer(config)
    cached = epochs(config)
    split = splits.open_split(config, "train", tokenizer)
    assert isinstance(split, splits.ReferringSplit)
    assert split.make.cache
    again = splits.open_split(config, "train", tokenizer, length=1)
    assert isinstance(again, splits.ReferringSplit)
    assert again.make.cache is split.make.cache
    config.model.image_height //= 2
    smaller = splits.open_split(config, "train", tokenizer)
    assert isinstance(smaller, splits.ReferringSplit)
    assert smaller.make.cache is not split.make.cache
    config.model.image_height *= 2
    whole, config.data.num_processes = split.make.cache.max_bytes, 3
    shared = splits.open_split(config, "train", tokenizer)
    assert isinstance(shared, splits.ReferringSplit)
    assert shared.make.cache
    assert whole == config.data.picture_cache_mb * 10**6 == 3 * shared.make.cache.max_bytes
    config.data.num_processes = config.data.picture_cache_mb = 0
    plain = splits.open_split(config, "train", tokenizer)
    assert isinstance(plain, splits.ReferringSplit)
    assert plain.make.cache is None
    assert_equal(cached, epochs(config))


def test_jitter_is_for_training_alone(config: Config):
    plain = epochs(config)
    config.data.jitter, config.data.jitter_scales, config.data.jitter_flip = True, (0.5, 0.5), 0.0
    jittered = epochs(config)
    for before, after in zip(plain, jittered, strict=True):
        np.testing.assert_allclose(after.targets.boxes, before.targets.boxes / 2, atol=1e-6)
        np.testing.assert_array_equal(after.token_ids, before.token_ids)
    split = splits.open_split(config, "train", splits.load_tokenizer(config))
    assert isinstance(split, splits.ReferringSplit)
    assert split.make.jitter is None
    config.data.jitter_scales, config.data.jitter_flip = (0.3, 1.4), 0.5
    assert splits._jitter(config.data) == Jitter()


def test_what_the_protocol_or_the_task_would_misread_is_refused(config: Config, tmp_path: Path):
    tokenizer = splits.load_tokenizer(config)
    lines = [
        {"image": "0.jpg", "split": s, "expressions": "a", "objects": [{"box": [1, 1, 9, 9]}]} for s in ("train", "val")
    ]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, lines)))
    prepare("custom", [tmp_path / "b.jsonl"], tmp_path / "images", tmp_path / "data", overwrite=True)
    with pytest.raises(InputError, match=r"train: record .* has an object with only a box or only a mask, which eval"):
        splits.open_split(config, "train", tokenizer)
    config.eval.protocol = "strict"
    assert len(splits.open_split(config, "val", tokenizer)) == 1
    config.eval.task = "rrefcoco"
    with pytest.raises(InputError, match=r"val: record .* is in no group, and the metrics of eval.task 'rrefcoco'"):
        splits.open_split(config, "val", tokenizer)
    assert len(splits.open_split(config, "train", tokenizer)) == 1


@pytest.mark.slow
def test_worker_processes_give_the_same_batches(config: Config):
    plain = epochs(config, 3)
    config.data.num_processes = 2
    assert_equal(plain, epochs(config, 3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_processes": -1}, r"num_processes is -1; expected 0 \(threads alone\) or more"),
        ({"picture_cache_mb": -5}, r"data.picture_cache_mb is -5; expected 0 \(none\) or more"),
        ({"jitter": True, "jitter_scales": (1.4, 0.3)}, r"data.jitter_scales is \(1.4, 0.3\); expected two numbers"),
        ({"jitter": True, "jitter_flip": 1.5}, "data.jitter_flip is 1.5; expected a probability from 0 to 1"),
    ],
)
def test_bad_settings_are_named(config: Config, changes: dict, message: str):
    config.data = replace(config.data, **changes)
    with pytest.raises(InputError, match=message):
        epochs(config)


def test_the_embedded_data_has_no_jitter():
    config = shapes_config.get_config()
    config.data.jitter = True
    with pytest.raises(InputError, match=r"data\.jitter is on; the 'shapes' data is drawn and has no jitter"):
        epochs(config)
