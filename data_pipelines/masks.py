"""Masks from polygons and run-length encodings, by pycocotools, which the original and COCO use."""

import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import pycocotools.mask
from jaxtyping import Bool, Int64, UInt8

from data_pipelines.records import RLE, Box, Segmentation
from instancevg_jax.errors import InputError, first_line

coco: Any = pycocotools.mask  # its type annotations leave out polygons
FARTHEST = 100_000  # pixels: largest coordinate of a box or polygon, on either side of 0
MOST_PIXELS = 2**29  # of a picture or mask; pycocotools counts with 32 bits and crashes on larger sizes


def check_size(height: int, width: int) -> None:
    """Raise InputError unless a picture of this size can have masks. pycocotools does not check sizes."""
    if height < 1 or width < 1 or height * width > MOST_PIXELS:
        raise InputError(
            f"a size of {width} x {height} pixels; expected at least 1 x 1 and at most {MOST_PIXELS:,} pixels"
        )


def to_rle(segmentation: Segmentation, height: int, width: int) -> RLE:
    """Rasterize polygons at a picture's size (their union); check an RLE and return it as it is.

    Raises InputError for polygons that pycocotools refuses (as it does where the first one has four numbers) or with a
    coordinate beyond `FARTHEST`, for an RLE of another size or whose runs do not fill it, and for an impossible size.
    """
    rle = sized(segmentation, height, width)
    if isinstance(segmentation, RLE):
        _run_lengths(rle)
    return rle


def sized(segmentation: Segmentation, height: int, width: int) -> RLE:
    """`to_rle` without the check of an RLE's runs, which `decode` and `decode_resized` make."""
    check_size(height, width)
    if isinstance(segmentation, RLE):
        if (segmentation.height, segmentation.width) != (height, width):
            size = f"{segmentation.width} x {segmentation.height}"
            raise InputError(f"the RLE is of a picture of {size}; expected {width} x {height}")
        return segmentation
    if not segmentation:
        return from_pixels(np.zeros((height, width), bool))
    _check_near(itertools.chain.from_iterable(segmentation))
    try:
        return _from_coco(coco.merge(coco.frPyObjects(segmentation, height, width)))
    except Exception as error:  # pycocotools raises the bare class
        raise InputError(
            f"the polygons cannot be drawn ({first_line(error)}); expected lists of x, y, x, y, ... numbers"
        ) from error


def uncompressed_to_rle(counts: Sequence[int], height: int, width: int) -> RLE:
    """COCO's uncompressed run lengths (its crowd annotations), column by column, starting with background.

    Raises InputError for an impossible size, a negative run, and runs that do not fill the size.
    """
    check_size(height, width)
    if min(counts, default=0) < 0:
        raise InputError(f"the RLE has a run of {min(counts)} pixels; expected 0 or more")
    if sum(counts) != height * width:
        raise InputError(f"the RLE's runs sum to {sum(counts)}; expected {height} * {width}")
    return _from_coco(coco.frPyObjects({"size": [height, width], "counts": list(counts)}, height, width))


def from_pixels(mask: Bool[np.ndarray, "H W"]) -> RLE:
    """The run lengths of a mask."""
    return _from_coco(coco.encode(np.asfortranarray(mask, np.uint8)))


def union(rles: Sequence[RLE]) -> RLE:
    """The union of masks of one size. Raises InputError where sizes differ or runs do not fill them."""
    for rle in rles:
        to_rle(rle, rles[0].height, rles[0].width)
    return _from_coco(coco.merge([_to_coco(rle) for rle in rles]))


def decode(rle: RLE) -> UInt8[np.ndarray, "H W"]:
    """The mask, 0 or 1. Raises InputError where the runs do not fill the size: pycocotools would read beyond its memory."""
    _run_lengths(rle)
    return coco.decode(_to_coco(rle))


def bounds(rle: RLE) -> Box:
    """The smallest box around a mask, xyxy."""
    x, y, w, h = coco.toBbox(_to_coco(rle)).tolist()
    return x, y, x + w, y + h


def area(rle: RLE) -> int:
    """Number of pixels."""
    return int(coco.area(_to_coco(rle)))


def from_box(box: Box, height: int, width: int) -> RLE:
    """A filled box. Raises InputError for a coordinate beyond `FARTHEST`, and for an impossible size."""
    check_size(height, width)
    _check_near(box)
    x1, y1, x2, y2 = box
    return _from_coco(coco.merge(coco.frPyObjects([[x1, y1, x2, y1, x2, y2, x1, y2]], height, width)))


def resize(mask: UInt8[np.ndarray, "h w"], height: int, width: int) -> Bool[np.ndarray, "H W"]:
    """Nearest-neighbour interpolation by OpenCV. Source: `BitmapMasks.resize` of mmdet, which the original calls."""
    # transposed, because pycocotools returns column-major arrays, which OpenCV would copy
    return cv2.resize(mask.T, (height, width), interpolation=cv2.INTER_NEAREST).T.view(bool)


def decode_resized(rle: RLE, height: int, width: int) -> Bool[np.ndarray, "H W"]:
    """`resize(decode(rle), height, width)`, drawn directly at that size, which is several times faster.

    The end of every run moves to its place among the pixels that nearest-neighbour interpolation takes. Raises InputError
    where the runs do not fill the size.
    """
    ends = np.cumsum(_run_lengths(rle))
    column, row = np.divmod(ends, rle.height)
    rows, columns = _axis(rle.height, height), _axis(rle.width, width)
    at = columns.distinct_before[column]
    there = columns.distinct_before[column + 1] > at  # otherwise the run ends before the next column that is taken
    moved = at * height + np.where(there, rows.before[row], 0)
    inside = np.arange(len(ends), dtype=np.uint8) & 1
    mask = np.repeat(inside, np.diff(moved, prepend=0)).reshape(-1, height)
    return cv2.transpose(mask if len(mask) == width else mask[columns.copies]).view(bool)


def _check_near(coordinates: Iterable[float]) -> None:
    """Raise InputError for far coordinates: pycocotools stores every pixel along an edge and would fill the memory."""
    farthest = max(map(abs, coordinates), default=0)
    if not farthest <= FARTHEST:
        raise InputError(f"a coordinate is {farthest:g} pixels; expected at most {FARTHEST:,}")


def _run_lengths(rle: RLE) -> Int64[np.ndarray, " runs"]:
    """Lengths of the runs of 0, 1, 0, ... down the columns.

    A number is stored in 5-bit groups, one per character, least significant first. From the fourth number on it is the
    difference to the number two before. Raises InputError where the runs do not fill the size.
    """
    check_size(rle.height, rle.width)
    digits = np.frombuffer(rle.counts.encode("ascii", "replace"), np.uint8).astype(np.int64) - 48
    last = digits < 32  # bit 5: the number continues
    first = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    place = np.arange(len(digits)) - np.repeat(first, np.diff(first, append=len(digits)))
    if len(digits) and last[-1] and place.max() <= 6 and ((digits >= 0) & (digits < 64)).all():
        runs = np.add.reduceat((digits & 31) << 5 * place, first)
        runs -= (digits[last] >> 4) << 5 * (place[last] + 1)  # bit 4 of the last character: negative
        runs[1::2], runs[2::2] = np.cumsum(runs[1::2]), np.cumsum(runs[2::2])
        if runs.sum() == rle.height * rle.width and (runs >= 0).all():
            return runs
    raise InputError(f"the RLE does not fill a mask of {rle.width} x {rle.height}")


class _Axis(NamedTuple):
    """Which of `source` pixels nearest-neighbour interpolation takes for `target` pixels, along one axis."""

    before: Int64[np.ndarray, " source+2"]  # before[k]: how many of the taken pixels precede pixel k
    distinct_before: Int64[np.ndarray, " source+2"]  # the same, with a pixel that is taken several times counted once
    copies: Int64[np.ndarray, " target"]  # index of each target pixel among the distinct taken pixels


@functools.lru_cache(maxsize=4096)
def _axis(source: int, target: int) -> _Axis:
    ramp = np.arange(source, dtype=np.float32)[None]
    taken = cv2.resize(ramp, (target, 1), interpolation=cv2.INTER_NEAREST)[0].astype(np.int64)
    distinct, copies = np.unique(taken, return_inverse=True)
    pixels = np.arange(source + 2)
    return _Axis(np.searchsorted(taken, pixels), np.searchsorted(distinct, pixels), copies)


def _to_coco(rle: RLE) -> dict[str, Any]:
    return {"size": [rle.height, rle.width], "counts": rle.counts.encode()}


def _from_coco(rle: dict[str, Any]) -> RLE:
    height, width = rle["size"]
    return RLE(int(height), int(width), rle["counts"].decode())
