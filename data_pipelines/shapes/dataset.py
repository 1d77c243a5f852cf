"""The embedded data set: endless generated pictures with sentences, the objects meant, and their visible masks.

Nothing is stored: example `index` of a split is computed from (split, level, index) alone, the same in every process
and on every platform. What the sentences are and mean stands in shapes_language.py, how scenes are made for them in
shapes_compose.py, how they are drawn in scene.py.

Splits are disjoint by their seeds. "train", "val" and "test" never show nor mention the seven (colour, shape) pairs of
HELD_OUT_PAIRS; in "heldout" every sentence is about one of them.

    dataset = ShapesDataset("train", level="basic", size=(96, 96))
    example = dataset[17]             # random access
    dataset.describe(17).expression   # without drawing, ten times faster
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from data_pipelines.shapes import scene
from data_pipelines.shapes.compose import OBJECT_COUNTS, draw_scene
from data_pipelines.shapes.dice import Dice
from data_pipelines.shapes.language import (
    COLOURS,
    HELD_OUT_PAIRS,
    SHAPES,
    SIZES,
    TEXTURES,
    Kind,
    SceneObject,
    draw_expression,
)
from instancevg_jax.errors import InputError
from instancevg_jax.inputs.tokenizer import Tokenizer
from instancevg_jax.types import Batch, Targets

__all__ = [
    "COLOURS",
    "HELD_OUT_PAIRS",
    "LEVELS",
    "MAX_TOKENS",
    "SHAPES",
    "SIZES",
    "SPLITS",
    "TEXTURES",
    "TOKENIZER_PATH",
    "Description",
    "Example",
    "SceneObject",
    "ShapesDataset",
    "batches",
    "make_batch",
]

SPLITS = ("train", "val", "test", "heldout")
LEVELS = tuple(OBJECT_COUNTS)
TOKENIZER_PATH = Path(__file__).parent / "assets" / "shapes.spm"
MAX_TOKENS = 20  # enough for every sentence, BOS and EOS included
MAX_INDEX = 2**32
MIN_SIDE = 32

# Mean and standard deviation of the pictures that BEiT-3 was trained on, as the original normalizes (0..255, RGB).
_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
_STD = np.array([58.395, 57.12, 57.375], np.float32)


@dataclass(frozen=True)
class Description:
    """What an example is, without its picture."""

    expression: str
    template: str  # which form the sentence has: a key of shapes_language.TEMPLATES
    kind: Kind  # "single", "multi" or "none": how many objects are meant
    attributes: tuple[str, ...]  # ("colour",), ("colour", "shape"), ("shape", "relation"), ...: what the sentence uses
    objects: tuple[SceneObject, ...]  # from back to front
    referents: tuple[int, ...]  # indices into `objects` of those meant


@dataclass(frozen=True)
class Example(Description):
    """One example with its picture. N counts ALL objects of the scene, not only those meant."""

    image: np.ndarray  # [H, W, 3] uint8, RGB
    boxes_xyxy: np.ndarray  # [N, 4] float32, pixels, tight around the visible masks, x2 and y2 excluded
    masks: np.ndarray  # [N, H, W] bool, what can be seen of each object

    @property
    def mask(self) -> Bool[np.ndarray, "H W"]:
        """The merged mask of everything meant."""
        return np.logical_or.reduce(self.masks[list(self.referents)], axis=0)


@dataclass(frozen=True)
class ShapesDataset:
    """Endless random-access examples of one split; cheap to build and to send to another process."""

    split: str
    level: str = "basic"
    size: tuple[int, int] = (96, 96)  # (H, W)

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise InputError(f"split {self.split!r} of the shapes data; expected one of {', '.join(SPLITS)}")
        if self.level not in LEVELS:
            raise InputError(f"level {self.level!r} of the shapes data; expected one of {', '.join(LEVELS)}")
        if min(self.size) < MIN_SIDE:
            raise InputError(
                f"picture size {self.size} of the shapes data; expected (H, W) of at least {MIN_SIDE} each"
            )

    def describe(self, index: int) -> Description:
        """Sentence, objects and referents of an example, without drawing it."""
        return self._describe(self._dice(index))

    def __getitem__(self, index: int) -> Example:
        dice = self._dice(index)
        about = self._describe(dice)
        image, masks, boxes = scene.draw(dice, about.objects, self.size)
        return Example(**vars(about), image=image, boxes_xyxy=boxes, masks=masks)

    def load(self, start: int, stop: int) -> list[Example]:
        """Examples [start, stop): a task for a worker process."""
        return [self[index] for index in range(start, stop)]

    def _dice(self, index: int) -> Dice:
        if not 0 <= index < MAX_INDEX:
            raise IndexError(f"index {index} of the shapes data; expected 0 <= index < 2**32")
        return Dice(SPLITS.index(self.split), LEVELS.index(self.level), index)

    def _describe(self, dice: Dice) -> Description:
        held_out = self.split == "heldout"
        expression = draw_expression(dice, self.level, held_out)
        kind, objects, referents = draw_scene(dice, expression, self.level, held_out)
        return Description(expression.text, expression.template, kind, expression.attributes, objects, referents)


def normalize(image: UInt8[np.ndarray, "H W 3"]) -> Float32[np.ndarray, "H W 3"]:
    """A picture as the network takes it."""
    return (image.astype(np.float32) - _MEAN) / _STD


def make_batch(examples: Sequence[Example], tokenizer: Tokenizer, max_tokens: int, max_targets: int) -> Batch:
    """A batch with numpy leaves (see instancevg_jax.types), masks at the pictures' size; `item` is -1, the loader sets it.

    Raises InputError when an example means more than `max_targets` objects.
    """
    height, width = examples[0].image.shape[:2]
    boxes = np.zeros((len(examples), max_targets, 4), np.float32)
    valid = np.zeros((len(examples), max_targets), bool)
    masks = np.zeros((len(examples), max_targets, height, width), bool)
    for row, example in enumerate(examples):
        meant = list(example.referents)
        if len(meant) > max_targets:
            raise InputError(f"{example.expression!r} means {len(meant)} objects; max_targets is {max_targets}")
        valid[row, : len(meant)] = True
        masks[row, : len(meant)] = example.masks[meant]
        boxes[row, : len(meant)] = _to_cxcywh(example.boxes_xyxy[meant], height, width)
    tokens = [tokenizer.encode(example.expression, max_tokens) for example in examples]
    return Batch(
        images=normalize(np.stack([example.image for example in examples])),
        token_ids=np.stack([ids for ids, _ in tokens]),
        token_mask=np.stack([mask for _, mask in tokens]),
        targets=Targets(boxes=boxes, valid=valid, masks=masks, mask=masks.any(axis=1)),
        example_weight=np.ones(len(examples), np.float32),
        item=np.full(len(examples), -1, np.int32),
    )


def _to_cxcywh(boxes_xyxy: Float32[np.ndarray, "N 4"], height: int, width: int) -> Float32[np.ndarray, "N 4"]:
    unit = boxes_xyxy / np.array([width, height, width, height], np.float32)
    low, high = unit[:, :2], unit[:, 2:]
    return np.concatenate([(low + high) / 2, high - low], axis=1)


def batches(
    split: str,
    level: str,
    size: tuple[int, int],
    batch_size: int,
    tokenizer: Tokenizer,
    max_tokens: int,
    max_targets: int,
    start: int = 0,
) -> Iterator[Batch]:
    """Batches without end, from example `start` on: pass the number already seen to go on where a run stopped."""
    dataset = ShapesDataset(split, level, size)
    while True:
        yield make_batch(dataset.load(start, start + batch_size), tokenizer, max_tokens, max_targets)
        start += batch_size
