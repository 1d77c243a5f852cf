"""Large-scale jitter that keeps sentences true: off unless a config asks for it, as in the original's configs.

Source: `LargeScaleJitter` in datasets/pipelines/transforms.py of the original (there for one object, without flips).
"""

import re
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from data_pipelines.records import Record
from instancevg_jax.inputs.pictures import PIXEL_MEAN

_SIDES = re.compile(
    r"left|(?<![bf])(?<!up)right|clockwise|"  # within words too: "lefty", "rightest", "onleft"; not "bright", "upright"
    r"\b[lr]t?s?\b|\b(rt|lft|rgt|lef|lefy|lfet|elft|lelft|lefdt|rig|righ|rigt|rigth|rght|rgiht|rihg|rihgt|rihght|rhgt|irght)"
    r"(s|y|est|ish|most|hand|side|ward|wards)?\b|"
    r"\b(north|south)?(east|west)(ern)?(s|most|side|ward|wards)?\b"
)
_SIGNS = re.compile(  # what cannot be read in a mirror
    r"\d|\b(clock|number|numeral|letter|lettering|word|wording|text|writing|written|writes?|label|labeled|labelled|logo|sign|"
    r"says?|reads?|spell|spelling|spells|title|titled|name|named|nametag|brand|license|licence|jersey)(s|ed)?\b"
)
_PLACES = re.compile(
    r"\b(top|bottom|upper|lower|middle|mid|center|centre|central|corner|edge|side|end|first|second|third|fourth|fifth|last|"
    r"front|back|foreground|background|near|nearest|far|farthest|furthest|close|closest|big|bigger|biggest|small|smaller|"
    r"smallest|large|larger|largest|partial|partially|cut|cropped|half|o'?clock)(s|most)?\b"
)
_TRIES = 100  # windows tried for each threshold, as the original does


@dataclass(frozen=True)
class Window:
    """A part of a picture, or more than it: x and y of its corner, its size, and whether it is mirrored afterwards."""

    x: int
    y: int
    size: tuple[int, int]  # (height, width), pixels of the picture
    flip: bool = False


@dataclass(frozen=True)
class Jitter:
    """Draws a scale in [`smallest`, `largest`]: below 1 the picture shrinks, above 1 a part of it is cut out.

    A part keeps at least 0.9, else 0.8, ... 0.5, else `least_overlap` of the area of EVERY object's box; where none does,
    or an object has no box, the picture stays whole. So it does where the sentence speaks of a place or compares
    ("middle", "closest"); where it speaks of a side ("left") the picture is not mirrored either. It is not mirrored where the
    sentence names what a mirror makes unreadable: digits, letters, signs, clocks.
    """

    smallest: float = 0.3
    largest: float = 1.4
    flip_probability: float = 0.5
    overlaps: tuple[float, ...] = (0.9, 0.8, 0.7, 0.6, 0.5)
    least_overlap: float = 0.3

    def draw(self, record: Record, expression: str, size: tuple[int, int], rng: np.random.Generator) -> Window | None:
        """The window for one example; None leaves the picture as it is. `size` is the picture's (height, width)."""
        text = expression.lower()
        sides = _SIDES.search(text) is not None
        flip = not sides and not _SIGNS.search(text) and bool(rng.random() < self.flip_probability)
        whole = Window(0, 0, size, flip) if flip else None
        if sides or _PLACES.search(text):
            return whole
        scale = rng.uniform(self.smallest, self.largest)
        height, width = (max(1, round(s / scale)) for s in size)
        if scale <= 1:
            return Window(0, 0, (height, width), flip)
        if any(i.box is None and i.segmentation for i in record.instances):
            return whole
        boxes = np.array([i.box for i in record.instances if i.box is not None], np.float64).reshape(-1, 4)
        corner = self._cut(boxes, size, (height, width), rng)
        return whole if corner is None else Window(*corner, (height, width), flip)

    def _cut(
        self, boxes: Float64[np.ndarray, "N 4"], size: tuple[int, int], part: tuple[int, int], rng: np.random.Generator
    ) -> tuple[int, int] | None:
        """The (x, y) of a window of size `part` that keeps enough of every box, or None."""
        best, corner = 0.0, None
        for threshold in self.overlaps:
            for _ in range(_TRIES):
                x = int(rng.integers(size[1] - part[1] + 1))
                y = int(rng.integers(size[0] - part[0] + 1))
                overlap = _overlap(boxes, x, y, part)
                if overlap > best:
                    best, corner = overlap, (x, y)
                if overlap >= threshold:
                    return x, y
        return corner if best >= self.least_overlap else None


def cut_picture(rgb: UInt8[np.ndarray, "h w 3"], window: Window) -> UInt8[np.ndarray, "H W 3"]:
    """The window's pixels; what lies outside the picture has the mean colour."""
    return _cut(rgb, window, tuple(round(v) for v in PIXEL_MEAN))


def cut_mask(mask: UInt8[np.ndarray, "h w"], window: Window) -> UInt8[np.ndarray, "H W"]:
    """The window's part of a mask; 0 outside."""
    return _cut(mask, window, (0,))


def cut_boxes(xyxy: Float64[np.ndarray, "N 4"], window: Window) -> Float64[np.ndarray, "N 4"]:
    """Boxes in the window's pixels, clipped to it."""
    height, width = window.size
    moved = xyxy - np.array([window.x, window.y, window.x, window.y], np.float64)
    moved = np.clip(moved, 0, np.array([width - 1, height - 1, width - 1, height - 1], np.float64))
    return np.stack([width - moved[:, 2], moved[:, 1], width - moved[:, 0], moved[:, 3]], 1) if window.flip else moved


def _cut(array: np.ndarray, window: Window, fill: tuple[int, ...]) -> np.ndarray:
    height, width = window.size
    part = array[window.y : window.y + height, window.x : window.x + width]
    below, right = height - part.shape[0], width - part.shape[1]
    if below or right:
        part = cv2.copyMakeBorder(part, 0, below, 0, right, cv2.BORDER_CONSTANT, value=fill)
    return np.ascontiguousarray(part[:, ::-1] if window.flip else part)


def _overlap(boxes: Float64[np.ndarray, "N 4"], x: int, y: int, part: tuple[int, int]) -> float:
    """The smallest share of a box's area that lies in the window; 1 without boxes."""
    low = np.maximum(boxes[:, :2], [x, y])
    high = np.minimum(boxes[:, 2:], [x + part[1], y + part[0]])
    inside = np.clip(high - low, 0, None).prod(axis=1)
    area = np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(axis=1), 1e-6)
    return float((inside / area).min(initial=1.0))
