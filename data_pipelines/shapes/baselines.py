"""Answers to the embedded data set that need no model: what a score must be compared with.

Each takes an example and gives the merged mask and the boxes that it predicts, to be scored with the metrics of the
model's own answers. `always_none` is the floor; `LanguageOnly` has read sentences but sees no picture; `colour_only` sees
the true objects and understands nothing but colour words.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

from data_pipelines.shapes.dataset import COLOURS, Example
from data_pipelines.shapes.scene import tight_boxes

_THRESHOLDS = np.linspace(0.05, 0.95, 19)


@dataclass(frozen=True)
class Answer:
    """What a baseline predicts for one example; nothing meant: an empty mask and no boxes."""

    mask: np.ndarray  # [H, W] bool
    boxes_xyxy: np.ndarray  # [M, 4] float32, pixels


def always_none(example: Example) -> Answer:
    """Nothing is ever meant."""
    return Answer(np.zeros(example.image.shape[:2], bool), np.zeros((0, 4), np.float32))


def colour_only(example: Example) -> Answer:
    """All objects of a colour that the sentence mentions, be it to exclude it; all objects if it mentions none."""
    colours = set(COLOURS).intersection(example.expression.split())
    chosen = [i for i, thing in enumerate(example.objects) if not colours or thing.colour in colours]
    if not chosen:
        return always_none(example)
    return Answer(np.logical_or.reduce(example.masks[chosen]), example.boxes_xyxy[chosen])


def chance_rec(example: Example) -> float:
    """The probability that one of the scene's objects, picked at random, is the right one of a single-object sentence."""
    return 1 / len(example.objects)


class LanguageOnly:
    """The one answer for each template that scores best, on average, over the examples given: a fixed mask, or none.

    The mask is where the objects meant by that template's sentences lie, thresholded where the mean IoU (gIoU, an empty
    answer to an empty sentence counting 1) is best. All examples must have pictures of one size.
    """

    def __init__(self, examples: Iterable[Example]) -> None:
        masks: dict[str, list[np.ndarray]] = {}
        for example in examples:
            masks.setdefault(example.template, []).append(example.mask)
        self._masks = {template: _best_constant(np.stack(group)) for template, group in masks.items()}

    def __call__(self, example: Example) -> Answer:
        mask = self._masks.get(example.template)
        if mask is None or not mask.any():
            return always_none(example)
        return Answer(mask, tight_boxes(mask[None]))


def _best_constant(masks: Bool[np.ndarray, "N H W"]) -> Bool[np.ndarray, "H W"]:
    """The mask with the best mean IoU over `masks` among those tried: empty, and the mean mask cut at several levels."""
    mean = masks.mean(axis=0)
    tried = [np.zeros_like(masks[0]), *(mean >= level * mean.max() for level in _THRESHOLDS if mean.any())]
    return max(tried, key=lambda mask: _ious(masks, mask).mean())


def _ious(masks: Bool[np.ndarray, "N H W"], mask: Bool[np.ndarray, "H W"]) -> Float64[np.ndarray, " N"]:
    shared, either = (masks & mask).sum(axis=(1, 2)), (masks | mask).sum(axis=(1, 2))
    return np.where(either == 0, 1.0, shared / np.maximum(either, 1))


def mean_iou(answers: Sequence[Answer], examples: Sequence[Example]) -> float:
    """gIoU of answers: the mean over examples, 1 where both sides are empty."""
    pairs = zip(answers, examples, strict=True)
    return float(np.mean([_ious(example.mask[None], answer.mask)[0] for answer, example in pairs]))
