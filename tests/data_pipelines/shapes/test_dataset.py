"""The embedded data set's pictures, masks and baselines."""

import hashlib
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from data_pipelines.shapes.baselines import LanguageOnly, always_none, colour_only
from data_pipelines.shapes.dataset import (
    COLOURS,
    LEVELS,
    SPLITS,
    TOKENIZER_PATH,
    DrawnScene,
    SceneObject,
    ShapesDataset,
)
from data_pipelines.shapes.dice import Dice
from data_pipelines.shapes.scene import draw
from data_pipelines.split import Guess
from instancevg_jax.errors import InputError
from instancevg_jax.inputs.tokenizer import Tokenizer

SIZES = [(96, 96), (64, 64), (64, 128)]


def fingerprint(split: str, level: str, size: tuple[int, int], count: int = 6) -> str:
    """Hash of pixels, masks and texts."""
    digest = hashlib.sha256()
    for example in ShapesDataset(split, level, size).load(0, count):
        digest.update(example.image.tobytes() + np.packbits(example.masks).tobytes() + example.boxes_xyxy.tobytes())
        digest.update(repr((example.expression, example.kind, example.referents)).encode())
    return digest.hexdigest()[:16]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(TOKENIZER_PATH)


def test_same_in_another_process() -> None:
    code = (
        "from tests.data_pipelines.shapes.test_dataset import fingerprint;"
        "print(fingerprint('train', 'basic', (96, 96)), fingerprint('heldout', 'full', (64, 128)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [fingerprint("train", "basic", (96, 96)), fingerprint("heldout", "full", (64, 128))]


@pytest.mark.parametrize(
    ("split", "level", "size", "expected"),
    [
        ("train", "basic", (96, 96), "bd7378f520418442"),
        ("val", "full", (96, 96), "c2822bda84471468"),
        ("test", "full", (320, 320), "5e1cc685abe2b65a"),
    ],
)
def test_same_on_every_platform(split: str, level: str, size: tuple[int, int], expected: str) -> None:
    """Recorded numbers. A deliberate change of the data set changes them: published results are then of another set."""
    assert fingerprint(split, level, size) == expected


def test_index_alone_decides() -> None:
    dataset = ShapesDataset("train", "full")
    forward, backward = [dataset[i] for i in range(5)], [dataset[i] for i in reversed(range(5))][::-1]
    for one, two in zip(forward, backward, strict=True):
        assert (one.image == two.image).all()
        assert one.expression == two.expression
    about = dataset.describe(3)
    assert all(getattr(forward[3], name) == value for name, value in vars(about).items())
    assert (pickle.loads(pickle.dumps(dataset))[4].image == forward[4].image).all()
    assert dataset[2**32 - 1].image.shape == (96, 96, 3)
    for index in (-1, 2**32):
        with pytest.raises(IndexError, match="expected 0 <= index"):
            dataset.describe(index)


def test_scene_does_not_depend_on_picture_size() -> None:
    for index in range(10):
        small, large = (ShapesDataset("val", "full", size)[index] for size in ((96, 96), (192, 192)))
        assert small.objects == large.objects
        assert small.referents == large.referents
        np.testing.assert_allclose(small.boxes_xyxy / 96, large.boxes_xyxy / 192, atol=1.6 / 96)


def test_splits_and_levels_are_disjoint() -> None:
    scenes = [
        ShapesDataset(split, level).describe(i).objects for split in SPLITS for level in LEVELS for i in range(300)
    ]
    assert len(set(scenes)) == len(scenes)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("level", LEVELS)
def test_masks_and_boxes(level: str, size: tuple[int, int]) -> None:
    hidden = []
    for index, example in enumerate(ShapesDataset("test", level, size).load(0, 60)):
        count = len(example.objects)
        assert example.image.shape == (*size, 3)
        assert example.image.dtype == np.uint8
        assert example.masks.shape == (count, *size)
        assert example.masks.sum(axis=0).max() == 1, "visible masks overlap"
        for mask, (x1, y1, x2, y2) in zip(example.masks, example.boxes_xyxy.astype(int), strict=True):
            inside = np.zeros(size, bool)
            inside[y1:y2, x1:x2] = True
            assert not (mask & ~inside).any()
            assert mask[y1].any()
            assert mask[y2 - 1].any()
            assert mask[:, x1].any()
            assert mask[:, x2 - 1].any()
        hidden += [1 - share for share in visible_shares(index, example, size)]
    assert max(hidden) < 0.5
    if size[0] == size[1]:  # in a wide picture the same scene is less crowded
        assert np.mean(np.array(hidden) > 0.1) > 0.05, "hardly anything hides anything"


def visible_shares(index: int, example: DrawnScene, size: tuple[int, int]) -> list[float]:
    """Visible area of each object over its area when drawn alone (tilted otherwise, which changes it by some per cent)."""
    alone = [draw(Dice(0, index, i), [item], size)[1].sum() for i, item in enumerate(example.objects)]
    return [float(mask.sum() / area) for mask, area in zip(example.masks, alone, strict=True)]


def test_pictures_show_what_the_objects_say() -> None:
    """The hue inside a plain object's mask is nearest the hue of the colour it is said to have; large is larger."""
    hues = {"red": 0, "orange": 30, "yellow": 52, "green": 129, "cyan": 184, "blue": 229, "purple": 281}
    assert set(hues) == set(COLOURS)
    for example in ShapesDataset("train", "full").load(0, 100):
        for item, mask in zip(example.objects, example.masks, strict=True):
            r, g, b = np.median(example.image[mask], axis=0) / 255
            hue = np.degrees(np.arctan2(np.sqrt(3) * (g - b), 2 * r - g - b))
            distance = {name: abs((hue - angle + 180) % 360 - 180) for name, angle in hues.items()}
            if item.texture == "plain":
                assert min(distance, key=lambda name: distance[name]) == item.colour, (item, hue)


def test_textures_and_shapes_are_drawn_differently() -> None:
    blue = SceneObject("blue", "square", "large", "plain", (0.5, 0.5), 0.18)

    def picture(**changes: str) -> np.ndarray:
        return draw(Dice(1), [replace(blue, **changes)], (96, 96))[0].astype(int)

    plain = picture()
    for changes in ({"texture": "striped"}, {"texture": "dotted"}, {"shape": "heart"}, {"colour": "red"}):
        assert (np.abs(picture(**changes) - plain).max(axis=2) > 60).sum() > 150, changes


def test_later_objects_hide_earlier_ones() -> None:
    back = SceneObject("red", "circle", "large", "plain", (0.45, 0.5), 0.18)
    front = SceneObject("blue", "square", "large", "plain", (0.6, 0.5), 0.18)
    _, masks, boxes = draw(Dice(3), [back, front], (96, 96))
    _, swapped, _ = draw(Dice(3), [front, back], (96, 96))
    assert masks[1].sum() > swapped[0].sum()
    assert masks[0].sum() < swapped[1].sum()
    assert boxes[0, 2] < 0.63 * 96 + 1


def test_bad_input() -> None:
    with pytest.raises(InputError, match=r"split 'training'.*train, val, test, heldout"):
        ShapesDataset("training")
    with pytest.raises(InputError, match=r"size \(16, 96\)"):
        ShapesDataset("train", size=(16, 96))
    with pytest.raises(InputError, match=r"size \(96, 30000\).*from 32 to 4096"):
        ShapesDataset("train", size=(96, 30000))


def test_large_pictures_show_the_scene_of_small_ones() -> None:
    small, large = (ShapesDataset("test", size=(n, n))[3] for n in (64, 1280))
    assert np.abs(small.boxes_xyxy * 20 - large.boxes_xyxy).max() <= 30  # a pixel and a half of the small one
    assert np.abs(small.image.mean((0, 1)) - large.image.mean((0, 1))).max() < 6


def giou(guesses: Sequence[Guess], scenes: Sequence[DrawnScene]) -> float:
    """The mean IoU; 1 where both masks are empty."""
    pairs = [(guess.mask, scene.mask) for guess, scene in zip(guesses, scenes, strict=True)]
    return float(np.mean([(a & b).sum() / (a | b).sum() if (a | b).any() else 1 for a, b in pairs]))


def test_baselines() -> None:
    scenes = ShapesDataset("val").load(0, 300)
    floor = giou([always_none(scene) for scene in scenes], scenes)
    assert floor == pytest.approx(np.mean([scene.kind == "none" for scene in scenes]))
    language = LanguageOnly(ShapesDataset("train").load(0, 400))
    assert giou([language(scene) for scene in scenes], scenes) <= floor + 0.03
    for scene in scenes:
        guess = colour_only(scene)
        assert len(guess.boxes_xyxy) <= len(scene.objects)
        assert guess.mask.any() == (len(guess.boxes_xyxy) > 0)
        if scene.attributes == ("colour",):
            np.testing.assert_array_equal(guess.mask, scene.mask)
            np.testing.assert_array_equal(guess.boxes_xyxy, scene.boxes_xyxy[list(scene.referents)])
        if scene.attributes == ("shape",):
            np.testing.assert_array_equal(guess.mask, scene.masks.any(axis=0))


def test_language_only_can_answer_with_a_mask() -> None:
    """Where the meant objects always lie in one place it says so: its floor above is found, not built in."""
    examples = [example for example in ShapesDataset("train").load(0, 60) if example.kind == "single"]
    fixed = np.zeros((1, 96, 96), bool)
    fixed[:, 20:40, 30:60] = True
    same = [DrawnScene(**{**vars(example), "masks": fixed, "referents": (0,)}) for example in examples]
    answer = LanguageOnly(same)(same[0])
    np.testing.assert_array_equal(answer.mask, fixed[0])
    np.testing.assert_array_equal(answer.boxes_xyxy, [[30, 20, 60, 40]])
