"""Geometry of single objects: empty boxes and polygons, self-crossing, disagreement, and parts outside the picture."""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float64

from data_pipelines import masks
from data_pipelines.records import RLE, Box, Instance, Record
from instancevg_jax.errors import InputError

_MARGIN = 1.0  # pixels that a box may reach beyond its picture, as COCO's do because of rounding
_FAR_OUTSIDE = 0.1  # fraction of the picture's side beyond which rounding or careless drawing is no explanation
_FAR = 0.3  # IoU of a box and its mask's bounds below which they belong to different objects or conventions
_CHUNK = 512  # edges at a time: 4,000 points would take 0.7 GB at once


def box_is_empty(box: Box) -> bool:
    """Whether a box has no width or no height."""
    return not (box[2] > box[0] and box[3] > box[1])


def polygon_is_empty(polygon: Sequence[float]) -> bool:
    """Whether a polygon x, y, x, y, ... has fewer than three points or all of them on one horizontal or vertical line."""
    points = np.asarray(polygon[: len(polygon) // 2 * 2], np.float64).reshape(-1, 2)
    return len(points) < 3 or bool((points == points[0]).all(axis=0).any())


def overhang(coordinates: Iterable[float], height: int, width: int) -> float:
    """How far x, y, x, y, ... lie outside the picture, as a fraction of its side; 0 for points inside."""
    values = list(coordinates)
    sides = (width, height) * (len(values) // 2)
    return max((max(-v, v - side, 0) / side for v, side in zip(values, sides, strict=False)), default=0.0)


def is_far_outside(coordinates: Iterable[float], height: int, width: int) -> bool:
    """Whether points lie further outside than rounding or careless drawing can explain."""
    return overhang(coordinates, height, width) > max(_FAR_OUTSIDE, 2 * _MARGIN / min(height, width))


def is_outside(box: Box, height: int, width: int) -> bool:
    """Whether a box reaches out of the picture by more than a pixel."""
    x1, y1, x2, y2 = box
    return min(x1, y1) < -_MARGIN or x2 > width + _MARGIN or y2 > height + _MARGIN


def is_inside(record: Record, height: int, width: int) -> bool:
    """Whether all boxes and polygons of a record lie within a picture of this size, to a pixel."""
    boxes = [i.box for i in record.instances if i.box is not None]
    polygons = [p for i in record.instances if isinstance(i.segmentation, list) for p in i.segmentation]
    limit = _MARGIN / min(height, width)
    return all(overhang(coordinates, height, width) <= limit for coordinates in [*boxes, *polygons])


def clip(box: Box, height: int, width: int) -> Box:
    """The part of a box within the picture; empty where there is none."""
    x1, y1, x2, y2 = box
    return min(max(x1, 0), width), min(max(y1, 0), height), min(max(x2, 0), width), min(max(y2, 0), height)


def iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes, in pixels without a "+ 1"; 0 where one is empty."""
    if box_is_empty(first) or box_is_empty(second):
        return 0.0
    (a1, b1, a2, b2), (c1, d1, c2, d2) = ([float(v) for v in box] for box in (first, second))
    shared = max(0.0, min(a2, c2) - max(a1, c1)) * max(0.0, min(b2, d2) - max(b1, d1))
    return shared / ((a2 - a1) * (b2 - b1) + (c2 - c1) * (d2 - d1) - shared)


def is_far(box: Box, mask: RLE) -> bool:
    """Whether a box has little in common with the bounds of its object's mask."""
    return iou(box, masks.bounds(mask)) < _FAR


def drawing(instance: Instance, height: int, width: int) -> tuple[RLE | None, str]:
    """The mask of an object, if it has one, and the reason why it cannot be drawn or is empty; "" if it is fine."""
    segmentation = instance.segmentation
    if isinstance(segmentation, list) and segmentation:
        segmentation = [p for p in segmentation if not polygon_is_empty(p)]
        if not segmentation:
            return None, "none of its polygons has an area"
    if not segmentation:
        return None, ""
    try:
        mask = masks.to_rle(segmentation, height, width)
    except InputError as error:
        return None, str(error)
    return mask, "" if masks.area(mask) else "it has no pixel within the picture"


def crosses_itself(polygon: Sequence[float]) -> bool:
    """Whether two edges of a closed polygon x, y, x, y, ... cross. Edges that only touch or overlap do not count."""
    start = np.asarray(polygon, np.float64).reshape(-1, 2)
    end = np.roll(start, -1, axis=0)
    for i in range(0, len(start), _CHUNK):
        some, every = (start[i : i + _CHUNK], end[i : i + _CHUNK]), (start, end)
        if (_separates(*some, *every) & _separates(*every, *some).T).any():
            return True
    return False


def _separates(
    start: Float64[np.ndarray, "n 2"],
    end: Float64[np.ndarray, "n 2"],
    other_start: Float64[np.ndarray, "m 2"],
    other_end: Float64[np.ndarray, "m 2"],
) -> Bool[np.ndarray, "n m"]:
    """Whether the line of edge n has the two ends of edge m on different sides."""
    return _side(start, end, other_start) * _side(start, end, other_end) < 0


def _side(
    start: Float64[np.ndarray, "n 2"], end: Float64[np.ndarray, "n 2"], points: Float64[np.ndarray, "m 2"]
) -> Float64[np.ndarray, "n m"]:
    """On which side of each edge each point lies: the sign of the cross product."""
    edge, offset = (end - start)[:, None], points[None] - start[:, None]
    return edge[..., 0] * offset[..., 1] - edge[..., 1] * offset[..., 0]
