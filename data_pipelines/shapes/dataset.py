"""The embedded data set: an infinite number of generated pictures with sentences, their targets and visible masks.

Nothing is stored. Scene `index` of a split depends only on (split, level, index) and is the same in every process and on
every platform. language.py defines the sentences and their meaning, compose.py makes scenes for them, and scene.py
draws the scenes.

Splits are disjoint by their seeds. "train", "val" and "test" neither show nor mention the seven (colour, shape) pairs of
HELD_OUT_PAIRS; in "heldout" every sentence is about one of them.

    dataset = ShapesDataset("train", level="basic", size=(96, 96))
    scene = dataset[17]               # random access
    dataset.describe(17).expression   # without drawing, ten times faster
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from data_pipelines.shapes import scene
from data_pipelines.shapes.compose import OBJECT_COUNTS, draw_scene
from data_pipelines.shapes.dice import Dice
from data_pipelines.shapes.language import (
    COLOURS,
    HELD_OUT_PAIRS,
    SHAPES,
    SIZES,
    TEXTURES,
    AnswerKind,
    SceneObject,
    draw_expression,
)
from instancevg_jax.errors import InputError

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
    "DrawnScene",
    "Scene",
    "SceneObject",
    "ShapesDataset",
]

SPLITS = ("train", "val", "test", "heldout")
LEVELS = tuple(OBJECT_COUNTS)
TOKENIZER_PATH = Path(__file__).parent / "assets" / "shapes.spm"
MAX_TOKENS = 20  # enough for every sentence, BOS and EOS included
MAX_INDEX = 2**32
MIN_SIDE, MAX_SIDE = 32, 4096  # pixels; a scene is drawn at 16 times as many before it is made smaller


@dataclass(frozen=True)
class Scene:
    """A sentence and the objects it is about, not yet drawn."""

    expression: str
    template: str  # the form of the sentence: a key of language.TEMPLATES
    kind: AnswerKind  # "single", "multi" or "none": how many targets there are
    attributes: tuple[str, ...]  # ("colour",), ("colour", "shape"), ("shape", "relation"), ...: what the sentence uses
    objects: tuple[SceneObject, ...]  # from back to front
    referents: tuple[int, ...]  # indices of the targets in `objects`


@dataclass(frozen=True)
class DrawnScene(Scene):
    """A scene with its picture. N counts all objects of the scene, targets or not."""

    image: np.ndarray  # [H, W, 3] uint8, RGB
    boxes_xyxy: np.ndarray  # [N, 4] float32, pixels, tight around the visible masks, x2 and y2 excluded
    masks: np.ndarray  # [N, H, W] bool, the visible part of each object

    @property
    def mask(self) -> Bool[np.ndarray, "H W"]:
        """The merged mask of the targets."""
        return np.logical_or.reduce(self.masks[list(self.referents)], axis=0)


@dataclass(frozen=True)
class ShapesDataset:
    """Random access to the scenes of one split. Cheap to build."""

    split: str
    level: str = "basic"
    size: tuple[int, int] = (96, 96)  # (H, W)

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise InputError(f"split {self.split!r} of the shapes data; expected one of {', '.join(SPLITS)}")
        if not MIN_SIDE <= min(self.size) <= max(self.size) <= MAX_SIDE:
            raise InputError(
                f"picture size {self.size} of the shapes data; expected (H, W) from {MIN_SIDE} to {MAX_SIDE} each"
            )

    def describe(self, index: int) -> Scene:
        """The scene without its picture."""
        return self._scene(self._dice(index))

    def __getitem__(self, index: int) -> DrawnScene:
        dice = self._dice(index)
        undrawn = self._scene(dice)
        image, masks, boxes = scene.draw(dice, undrawn.objects, self.size)
        return DrawnScene(**vars(undrawn), image=image, boxes_xyxy=boxes, masks=masks)

    def load(self, start: int, stop: int) -> list[DrawnScene]:
        """Scenes [start, stop)."""
        return [self[index] for index in range(start, stop)]

    def _dice(self, index: int) -> Dice:
        if not 0 <= index < MAX_INDEX:
            raise IndexError(f"index {index} of the shapes data; expected 0 <= index < 2**32")
        return Dice(SPLITS.index(self.split), LEVELS.index(self.level), index)

    def _scene(self, dice: Dice) -> Scene:
        held_out = self.split == "heldout"
        expression = draw_expression(dice, self.level, held_out)
        kind, objects, referents = draw_scene(dice, expression, self.level, held_out)
        return Scene(expression.text, expression.template, kind, expression.attributes, objects, referents)
