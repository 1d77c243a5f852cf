"""The frame that annotations are in: a picture's stored pixels, or the picture as EXIF orientation shows it.

Viewers, browsers and this project apply EXIF orientation; some annotation tools do not, so that their coordinates belong to
the stored pixels and name something else in the picture that is shown.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np

from data_pipelines import masks
from data_pipelines.checking.geometry import is_inside
from data_pipelines.checking.pictures import PictureInfo
from data_pipelines.records import RLE, Instance, Record
from instancevg_jax.errors import InputError

Frame = Literal["shown", "stored", "unknown"]

# by EXIF orientation: a point (x, y) of stored pixels, of size (w, h), as it is shown
_POINTS: dict[int, Callable[[float, float, int, int], tuple[float, float]]] = {
    5: lambda x, y, w, h: (y, x),
    6: lambda x, y, w, h: (h - y, x),
    7: lambda x, y, w, h: (h - y, w - x),
    8: lambda x, y, w, h: (y, w - x),
}
_PIXELS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    5: lambda mask: mask.T,
    6: lambda mask: np.rot90(mask, -1),
    7: lambda mask: np.rot90(mask, 2).T,
    8: np.rot90,
}


def frame_of(record: Record, picture: PictureInfo) -> Frame:
    """Which frame the annotations of a record are in.

    Only orientations that exchange height and width can be told: by the stated size, by the size of stored masks, or by
    coordinates that fit in one frame only. "unknown" where nothing of that decides, or where two of them disagree.
    """
    if picture.orientation < 5 or not any(i.box or i.segmentation for i in record.instances):
        return "shown"
    shown, stored = picture.size, picture.stored_size
    assert shown
    assert stored
    sizes = {(i.segmentation.height, i.segmentation.width) for i in record.instances if isinstance(i.segmentation, RLE)}
    sizes |= {(record.height, record.width)} - {(0, 0)}
    fits_shown, fits_stored = (is_inside(record, *size) for size in (shown, stored))
    if shown == stored or not sizes <= {shown, stored}:
        return "shown"  # a square, where nothing can tell; or another size, which is a fault of its own
    if sizes == {shown} or (not sizes and fits_shown and not fits_stored):
        return "shown" if fits_shown or not fits_stored else "unknown"
    if sizes == {stored} or (not sizes and fits_stored and not fits_shown):
        return "stored" if fits_stored else "unknown"
    return "unknown"


def turn(record: Record, picture: PictureInfo) -> Record:
    """A record whose annotations are in the stored pixels, in the picture as it is shown.

    Raises InputError for a mask whose runs do not fill its size.
    """
    assert picture.size
    assert picture.stored_size
    height, width = picture.stored_size
    instances = tuple(_turn(i, picture.orientation, height, width) for i in record.instances)
    return replace(record, height=picture.size[0], width=picture.size[1], instances=instances)


def _turn(instance: Instance, orientation: int, height: int, width: int) -> Instance:
    point = _POINTS[orientation]
    box, segmentation = instance.box, instance.segmentation
    if box is not None:
        (xa, ya), (xb, yb) = (point(x, y, width, height) for x, y in (box[:2], box[2:]))
        box = min(xa, xb), min(ya, yb), max(xa, xb), max(ya, yb)
    if isinstance(segmentation, RLE):
        if (segmentation.height, segmentation.width) != (height, width):
            raise InputError("a mask is of another size than the stored picture")
        segmentation = masks.from_pixels(_PIXELS[orientation](masks.decode(segmentation)))
    elif segmentation:
        segmentation = [
            [v for x, y in zip(p[::2], p[1::2], strict=False) for v in point(x, y, width, height)] for p in segmentation
        ]
    return replace(instance, box=box, segmentation=segmentation)
