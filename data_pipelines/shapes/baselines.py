"""Baselines for the embedded data set: answers that need no model.

`always_none` is the lower bound. `LanguageOnly` knows the usual answers to a kind of sentence and sees no picture.
`colour_only` sees the true objects and understands only colour words.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Float64

from data_pipelines.shapes.dataset import COLOURS, DrawnScene
from data_pipelines.shapes.scene import tight_boxes
from data_pipelines.split import Guess

_THRESHOLDS = np.linspace(0.05, 0.95, 19)


def always_none(scene: DrawnScene) -> Guess:
    """No target, ever."""
    return Guess(np.zeros((0, 4), np.float32), np.zeros(scene.image.shape[:2], bool))


def colour_only(scene: DrawnScene) -> Guess:
    """All objects of the colours that the sentence names, including excluded ones; all objects without colour words."""
    colours = set(COLOURS).intersection(scene.expression.split())
    chosen = [i for i, thing in enumerate(scene.objects) if not colours or thing.colour in colours]
    if not chosen:
        return always_none(scene)
    return Guess(scene.boxes_xyxy[chosen], np.logical_or.reduce(scene.masks[chosen]))


class LanguageOnly:
    """Gives one answer to all sentences of a template: the fixed mask, or no target, with the best gIoU on `scenes`.

    The masks tried are the mean mask of the template's targets at several thresholds. All scenes must have one size.
    """

    def __init__(self, scenes: Iterable[DrawnScene]) -> None:
        masks: dict[str, list[np.ndarray]] = {}
        for scene in scenes:
            masks.setdefault(scene.template, []).append(scene.mask)
        self._masks = {template: _best_constant(np.stack(group)) for template, group in masks.items()}

    def __call__(self, scene: DrawnScene) -> Guess:
        mask = self._masks.get(scene.template)
        if mask is None or not mask.any():
            return always_none(scene)
        return Guess(tight_boxes(mask[None]), mask)


def _best_constant(masks: Bool[np.ndarray, "N H W"]) -> Bool[np.ndarray, "H W"]:
    """The candidate with the best mean IoU with `masks`: the empty mask, and the mean mask at several thresholds."""
    mean = masks.mean(axis=0)
    tried = [np.zeros_like(masks[0]), *(mean >= level * mean.max() for level in _THRESHOLDS if mean.any())]
    return max(tried, key=lambda mask: _ious(masks, mask).mean())


def _ious(masks: Bool[np.ndarray, "N H W"], mask: Bool[np.ndarray, "H W"]) -> Float64[np.ndarray, " N"]:
    shared, either = (masks & mask).sum(axis=(1, 2)), (masks | mask).sum(axis=(1, 2))
    return np.where(either == 0, 1.0, shared / np.maximum(either, 1))
