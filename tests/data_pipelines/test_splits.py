"""From a config to training batches: the curriculum of the embedded data, the cache of prepared data."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import shapes as shapes_config
from data_pipelines import splits
from data_pipelines.cache import PictureCache
from data_pipelines.prepare import prepare
from data_pipelines.prepared.split import ReferringSplit
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
    source = splits.open_split(config, "train", splits.load_tokenizer(config))
    stream = splits.train_batches(config, source)
    return [next(stream) for _ in range(count)]


def assert_equal(ours: list[Batch], theirs: list[Batch]) -> None:
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("turns", [("basic", "full"), ("outlines", "basic"), ("basic", "outlines", "full")])
def test_curriculum_goes_from_one_level_to_all_by_turns(turns):
    config = shapes_config.get_config()
    config.train.batch_size = 8
    config.data.shapes_turns, config.data.shapes_curriculum = turns, 4
    tokenizer = splits.load_tokenizer(config)
    source = splits.open_split(config, "train", tokenizer)
    batch = next(splits.train_batches(config, source))
    levels = [turns[0]] * 4 + [turns[i % len(turns)] for i in range(4, 8)]
    expected = [ShapesDataset("train", level).describe(i).expression for i, level in enumerate(levels)]
    tokens = [tokenizer.encode(expression, config.model.max_tokens)[0] for expression in expected]
    np.testing.assert_array_equal(np.asarray(batch.token_ids), np.stack(tokens))
    assert [source.name(i) for i in batch.item] == [f"train {level} {i}" for i, level in enumerate(levels)]


def test_a_split_with_a_length_has_no_curriculum():
    config = shapes_config.get_config()
    config.data.shapes_curriculum = 4
    source = splits.open_split(config, "train", splits.load_tokenizer(config), length=10)
    assert len(source) == 10
    assert source.name(9) == "train basic 9"


def test_the_cache_changes_no_batch_and_is_shared(config: Config):
    tokenizer = splits.load_tokenizer(config)

    def opened(length: int = 0) -> PictureCache | None:
        source = splits.open_split(config, "train", tokenizer, length=length)
        assert isinstance(source, ReferringSplit)
        return source.make.cache

    cached, cache = epochs(config), opened()
    assert cache
    assert cache.max_bytes == config.data.picture_cache_mb * 10**6
    assert opened(length=1) is cache
    config.model.image_height //= 2
    assert opened() is not cache
    config.model.image_height *= 2
    config.data.picture_cache_mb = 0
    assert opened() is None
    assert_equal(cached, epochs(config))


def test_what_the_protocol_or_the_task_would_misread_is_refused(config: Config, tmp_path: Path):
    tokenizer = splits.load_tokenizer(config)
    lines = [
        {"image": "0.jpg", "split": s, "expressions": "a", "objects": [{"box": [1, 1, 9, 9]}]} for s in ("train", "val")
    ]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, lines)))
    prepare("custom", [tmp_path / "b.jsonl"], tmp_path / "images", tmp_path / "data", overwrite=True)
    with pytest.raises(
        InputError, match=r"train: record .* has an object with only a box or only a mask; the official"
    ):
        splits.open_split(config, "train", tokenizer)
    config.eval.protocol = "strict"
    assert len(splits.open_split(config, "val", tokenizer)) == 1
    config.eval.task = "rrefcoco"
    with pytest.raises(InputError, match=r"val: record .* has no group, which the metrics of eval.task 'rrefcoco'"):
        splits.open_split(config, "val", tokenizer)
    assert len(splits.open_split(config, "train", tokenizer)) == 1


def test_a_training_split_without_any_object_is_warned_of(config: Config, tmp_path: Path, capsys):
    lines = [{"image": "0.jpg", "split": s, "expressions": "a", "objects": []} for s in ("train", "val")]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, lines)))
    tokenizer = splits.load_tokenizer(config)
    splits.open_split(config, "train", tokenizer)
    assert "warning" not in capsys.readouterr().err
    prepare("custom", [tmp_path / "b.jsonl"], tmp_path / "images", tmp_path / "data", overwrite=True)
    splits.open_split(config, "val", tokenizer)
    assert "warning" not in capsys.readouterr().err
    splits.open_split(config, "train", tokenizer)
    assert "warning: train: no record has an object under eval.protocol=official" in capsys.readouterr().err


def test_an_opened_split_serves_batches_names_and_metrics(config: Config):
    source = splits.open_split(config, "train", splits.load_tokenizer(config))
    batch = next(splits.train_batches(config, source))
    assert sorted(batch.item) == list(range(SPLIT_SIZE)) == list(range(len(source)))
    assert [source.name(i) for i in range(2)] == ["a.jsonl line 1 (0.jpg)", "a.jsonl line 2 (1.jpg)"]
    assert source.drawn
    assert source.guesses(0) == {}
    assert source.describe(1).tags == {"kind": "single"}
    boxes, mask = source.truth(0)
    shown = source.show(0)
    np.testing.assert_array_equal(shown.boxes_xyxy, boxes)
    np.testing.assert_array_equal(shown.masks[0], mask)


def test_the_data_sets_that_exist_are_named():
    config = Config(data=DataConfig(name="coco"))
    with pytest.raises(InputError, match=r"data.name is 'coco'; expected one of shapes, refcoco, .*custom"):
        splits.load_tokenizer(config)
    with pytest.raises(InputError, match=r"data.tokenizer is empty; 'custom' needs the path of a sentencepiece model"):
        splits.load_tokenizer(Config(data=DataConfig(name="custom")))
