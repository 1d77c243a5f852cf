"""Detects boxes that are not corners in pixels: [x, y, width, height], or normalized to 0..1, 0..100 or 0..1000."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from data_pipelines import masks
from data_pipelines.checking.geometry import box_is_empty, iou, is_far_outside, is_outside
from data_pipelines.checking.pictures import PictureInfo
from data_pipelines.records import RLE, Box, Record

_SAME = 0.7  # smallest IoU at which a converted box is taken for the box of the mask
_ENOUGH = 8  # number of distinct boxes from which the absence of larger coordinates is significant
_SMALL = 0.15  # mean ratio of the area as corners to the area as width and height; 1 for a box in the top left corner
Size = tuple[int, int]  # (height, width)


class Suspicion(NamedTuple):
    """The likely convention of all boxes without a mask."""

    cause: str = ""  # "" if they seem to be corners in pixels
    certain: bool = False  # some box is impossible as corners, and all are possible in the convention


def _scaled(box: Box, x: float, y: float) -> Box:
    return box[0] * x, box[1] * y, box[2] * x, box[3] * y


_XYWH = "[x, y, width, height]"
_CORNERS = "corners [x1, y1, x2, y2], where [x, y, width, height] is expected"
_RANGES = {100: "normalized to 0..100", 1000: "normalized to 0..1000"}
_READINGS: dict[str, Callable[[Box, Size], Box]] = {  # convention -> the box as it is meant
    _XYWH: lambda b, size: (b[0], b[1], b[0] + b[2], b[1] + b[3]),
    _CORNERS: lambda b, size: (b[0], b[1], b[2] - b[0], b[3] - b[1]),
    "normalized to 0..1": lambda b, size: _scaled(b, size[1], size[0]),
    _RANGES[100]: lambda b, size: _scaled(b, size[1] / 100, size[0] / 100),
    _RANGES[1000]: lambda b, size: _scaled(b, size[1] / 1000, size[0] / 1000),
}


def is_normalized(coordinates: Iterable[float], size: Size) -> bool:
    """Whether coordinates look normalized to 0..1: all lie in the picture's first pixel, or are fractions near it."""
    values = list(coordinates)
    if not values or min(size) < 4 or min(values) < 0:
        return False
    return max(values) <= 1 or (max(values) <= 2 and any(v != int(v) for v in values))  # x + width may exceed 1


def reading_of(box: Box, mask: RLE) -> str:
    """The convention in which a box agrees with its object's mask; "" if there is none."""
    bounds, size = masks.bounds(mask), (mask.height, mask.width)
    return next((name for name, read in _READINGS.items() if iou(read(box, size), bounds) >= _SAME), "")


def suspect(records: Iterable[Record], pictures: dict[str, PictureInfo]) -> Suspicion:
    """The likely convention of the boxes without a mask to compare them with."""
    found = [
        (instance.box, size, record.corners)
        for record in records
        if (size := pictures[record.picture].size)
        for instance in record.instances
        if instance.box and not instance.segmentation and not is_normalized(instance.box, size)
    ]
    boxes = list(dict.fromkeys((box, size) for box, size, _ in found))
    conventions = {corners for *_, corners in found}
    other = "" if len(conventions) != 1 else _XYWH if True in conventions else _CORNERS  # than the file's own
    if any(_is_impossible(box, size) for box, size in boxes):
        cause = other if other and _fit(other, boxes) else _range_of_impossible(boxes)
        return Suspicion(cause, certain=bool(cause))
    if not boxes or any(box_is_empty(box) for box, _ in boxes):
        return Suspicion()
    if other == _XYWH and _fit(_XYWH, boxes) and sum(_shrinkage(box) for box, _ in boxes) < _SMALL * len(boxes):
        return Suspicion(_XYWH)
    largest, sides = max(max(box) for box, _ in boxes), min(min(size) for _, size in boxes)
    scale = next((n for n in _RANGES if len(boxes) >= _ENOUGH and 0.9 * n < largest <= n and sides >= 1.5 * n), None)
    return Suspicion(_RANGES[scale]) if scale else Suspicion()


def doubt_of(records: Sequence[Record], pictures: dict[str, PictureInfo]) -> str:
    """The convention other than pixels that boxes without a mask are surely in, as text; "" if there is none."""
    for record in records:
        size = pictures[record.picture].size
        if size and any(i.box and not i.segmentation and is_normalized(i.box, size) for i in record.instances):
            return f"normalized to 0..1, such as in record {record.id}"
    suspicion = suspect(records, pictures)
    return suspicion.cause if suspicion.certain else ""


def _range_of_impossible(boxes: list[tuple[Box, Size]]) -> str:
    outside = [is_far_outside(box, *size) for box, size in boxes]
    both_axes = any(box[2] > size[1] and box[3] > size[0] for box, size in boxes)
    lowest, largest = (pick(v for box, _ in boxes for v in box) for pick in (min, max))
    if lowest < 0 or any(box_is_empty(b) for b, _ in boxes) or not both_axes or 2 * sum(outside) < len(boxes):
        return ""
    return next((name for scale, name in _RANGES.items() if largest <= scale), "")


def _fit(name: str, boxes: list[tuple[Box, Size]]) -> bool:
    """Whether every box is possible in another convention."""
    read = _READINGS[name]
    return not any(box_is_empty(read(box, size)) or is_outside(read(box, size), *size) for box, size in boxes)


def _is_impossible(box: Box, size: Size) -> bool:
    return box[2] < box[0] or box[3] < box[1] or is_far_outside(box, *size)


def _shrinkage(box: Box) -> float:
    """Area of the box as corners over its area as width and height."""
    return (box[2] - box[0]) * (box[3] - box[1]) / (box[2] * box[3])
