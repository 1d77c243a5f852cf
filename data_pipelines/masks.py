"""Polygons and run-length encodings -> masks, by pycocotools, which is what the original and COCO use."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pycocotools.mask
from jaxtyping import Bool, UInt8

from data_pipelines.records import RLE, Box, Segmentation
from instancevg_jax.errors import InputError

coco: Any = pycocotools.mask  # its annotations leave out polygons


def to_rle(segmentation: Segmentation, height: int, width: int) -> RLE:
    """Rasterise polygons at a picture's size (their union); an RLE is checked against that size and passed through.

    One "polygon" of four numbers alone is taken as x, y, width, height, as pycocotools does. Raises InputError for
    polygons that pycocotools refuses, and for an RLE of another size.
    """
    if isinstance(segmentation, RLE):
        if (segmentation.height, segmentation.width) != (height, width):
            size = f"{segmentation.width} x {segmentation.height}"
            raise InputError(f"the RLE is of a picture of {size}; expected {width} x {height}")
        return segmentation
    if not segmentation:
        return _from_coco(coco.encode(np.zeros((height, width), np.uint8, order="F")))
    try:
        return _from_coco(coco.merge(coco.frPyObjects(segmentation, height, width)))
    except Exception as error:  # pycocotools raises the bare class
        raise InputError(
            f"the polygons cannot be drawn ({error}); expected lists of x, y, x, y, ... numbers"
        ) from error


def uncompressed_to_rle(counts: Sequence[int], height: int, width: int) -> RLE:
    """COCO's uncompressed run lengths (its crowd annotations), column by column, starting with background."""
    if sum(counts) != height * width:
        raise InputError(f"the RLE's runs sum to {sum(counts)}; expected {height} * {width}")
    return _from_coco(coco.frPyObjects({"size": [height, width], "counts": list(counts)}, height, width))


def decode(rle: RLE) -> UInt8[np.ndarray, "H W"]:
    """The mask, 0 or 1. Raises InputError where the runs do not fill the size."""
    try:
        return coco.decode(_to_coco(rle))
    except ValueError as error:
        raise InputError(f"the RLE does not fill a mask of {rle.width} x {rle.height} ({error})") from error


def bounds(rle: RLE) -> Box:
    """The smallest box around a mask, xyxy."""
    x, y, w, h = coco.toBbox(_to_coco(rle)).tolist()
    return x, y, x + w, y + h


def area(rle: RLE) -> int:
    """Number of pixels."""
    return int(coco.area(_to_coco(rle)))


def from_box(box: Box, height: int, width: int) -> RLE:
    """A box, filled."""
    x1, y1, x2, y2 = box
    return _from_coco(coco.merge(coco.frPyObjects([[x1, y1, x2, y1, x2, y2, x1, y2]], height, width)))


def resize(mask: UInt8[np.ndarray, "h w"], height: int, width: int) -> Bool[np.ndarray, "H W"]:
    """OpenCV's nearest neighbour. Source: `BitmapMasks.resize` of mmdet, which the original calls."""
    # transposed, because pycocotools gives columns: so OpenCV need not copy
    return cv2.resize(mask.T, (height, width), interpolation=cv2.INTER_NEAREST).T.view(bool)


def _to_coco(rle: RLE) -> dict[str, Any]:
    return {"size": [rle.height, rle.width], "counts": rle.counts.encode()}


def _from_coco(rle: dict[str, Any]) -> RLE:
    height, width = rle["size"]
    return RLE(int(height), int(width), rle["counts"].decode())
