"""The embedded data as a split: the same preprocess as everything else."""

import numpy as np
import pytest

from data_pipelines.shapes.dataset import MAX_TOKENS, TOKENIZER_PATH, ShapesDataset
from data_pipelines.shapes.split import ShapesSplit
from instancevg_jax.errors import InputError
from instancevg_jax.inputs.pictures import prepare_picture
from instancevg_jax.inputs.tokenizer import UNK, Tokenizer

RNG = np.random.default_rng(0)


def split_of(dataset: ShapesDataset, max_targets: int) -> ShapesSplit:
    return ShapesSplit(dataset, Tokenizer.from_file(TOKENIZER_PATH), MAX_TOKENS, max_targets, length=24)


def test_batch() -> None:
    dataset = ShapesDataset("train", "full", (64, 96))
    split, scenes = split_of(dataset, 10), dataset.load(0, 24)
    batch = split.stack([split.transform(split[i], RNG) for i in range(24)])
    assert batch.images.dtype == np.float32
    assert batch.token_ids.shape == batch.token_mask.shape == (24, MAX_TOKENS)
    assert UNK not in batch.token_ids
    assert batch.targets.masks.shape == (24, 10, 64, 96)
    assert batch.targets.boxes.dtype == np.float32
    assert (batch.example_weight == 1).all()
    for row, scene in enumerate(scenes):
        targets = list(scene.referents)
        np.testing.assert_array_equal(batch.images[row], prepare_picture(scene.image, 64, 96))
        np.testing.assert_array_equal(batch.targets.valid[row], np.arange(10) < len(targets))
        np.testing.assert_array_equal(batch.targets.mask[row], scene.mask)
        np.testing.assert_array_equal(batch.targets.masks[row, : len(targets)], scene.masks[targets])
        assert not batch.targets.masks[row, len(targets) :].any()
        assert not batch.targets.boxes[row, len(targets) :].any()
        cx, cy, w, h = (batch.targets.boxes[row, : len(targets)] * (96, 64, 96, 64)).T
        corners = np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], axis=1)
        np.testing.assert_allclose(corners, scene.boxes_xyxy[targets], atol=1e-4)


def test_more_targets_than_rows_is_an_error_that_names_the_example() -> None:
    dataset = ShapesDataset("train")
    index = next(i for i in range(40) if dataset.describe(i).kind == "multi")
    with pytest.raises(
        InputError,
        match=rf"train basic {index} \(.*\): the sentence has . target objects; expected at most data.max_targets = 1",
    ):
        split_of(dataset, 1).transform(index, RNG)


def test_a_record_by_all_its_views() -> None:
    dataset = ShapesDataset("val")
    split = split_of(dataset, 4)
    assert (len(split), split.drawn, split.group(5), split.name(5)) == (24, False, -1, "val basic 5")
    for record in range(8):
        scene, described, shown = dataset[record], split.describe(record), split.show(record)
        boxes, mask = split.truth(record)
        np.testing.assert_array_equal(boxes, shown.boxes_xyxy)
        np.testing.assert_array_equal(mask, shown.masks.any(axis=0))
        assert described.object_ids == tuple(map(str, scene.referents))
        assert described.num_objects == len(scene.objects)
        assert described.tags["kind"] == scene.kind


def test_guesses_of_the_baselines() -> None:
    split = split_of(ShapesDataset("val"), 4)
    guesses = split.guesses(0)
    assert list(guesses) == ["always none", "language only", "colour words only"]
    for guess in guesses.values():
        assert guess.mask.shape == (96, 96)
        assert guess.mask.any() == (len(guess.boxes_xyxy) > 0)
    assert not guesses["always none"].mask.any()
