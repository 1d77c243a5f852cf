"""The frame of annotations: a picture's stored pixels, or the picture with its EXIF orientation applied.

Viewers, browsers and this project apply EXIF orientation. Some annotation tools do not, so that their coordinates refer to the
stored pixels.
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

# EXIF orientation -> function of a point (x, y) in the stored picture of size (w, h), giving the point as shown
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
    """The frame of a record's annotations.

    Only orientations that exchange height and width can be recognized: by the stated size, by the size of stored masks, or by
    coordinates that fit in only one of the frames. "unknown" if none of these decides, or if they disagree.
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
        return "shown"  # a square, where the frames look alike; or another size, which is a fault of its own
    if sizes == {shown} or (not sizes and fits_shown and not fits_stored):
        return "shown" if fits_shown or not fits_stored else "unknown"
    if sizes == {stored} or (not sizes and fits_stored and not fits_shown):
        return "stored" if fits_stored else "unknown"
    return "unknown"


def turn(record: Record, picture: PictureInfo) -> Record:
    """Convert a record from the stored pixels to the picture as it is shown.

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
