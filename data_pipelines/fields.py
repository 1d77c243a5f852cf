"""Single values of annotation files, checked: what every reader shares. `where` names the place in messages."""

import math
from typing import Any

from data_pipelines import masks
from data_pipelines.records import RLE, Box, Instance, Segmentation
from instancevg_jax.errors import InputError


def field(entry: dict[str, Any], key: str, kind: type, where: str) -> Any:
    """`entry[key]`, which has to be there and of `kind`."""
    value = entry.get(key)
    if not isinstance(value, kind):
        raise InputError(f"{where}.{key} is {_short(value)}; expected a {kind.__name__}")
    return value


def number(value: Any, where: str) -> float:
    """A finite number, as it is (an int stays an int)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{where} is {_short(value)}; expected a number")
    return value


def text(value: Any, where: str) -> str:
    """A string."""
    if not isinstance(value, str):
        raise InputError(f"{where} is {_short(value)}; expected a string")
    return value


def strings(value: Any, where: str) -> tuple[str, ...]:
    """One string or a list of at least one."""
    if isinstance(value, dict) and "raw" in value:
        value = value["raw"]
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        raise InputError(f"{where} is {_short(value)}; expected a string or a list of strings")
    return tuple(text(item, f"{where}[{i}]") for i, item in enumerate(value))


def xywh_box(value: Any, where: str) -> Box | None:
    """COCO's [x, y, width, height] as xyxy, in float64 as the original adds them; null stays None."""
    if value is None:
        return None
    x, y, w, h = _four(value, where, "[x, y, width, height]")
    return x, y, x + w, y + h


def xyxy_box(value: Any, where: str) -> Box | None:
    """[x1, y1, x2, y2]; null stays None."""
    return None if value is None else _four(value, where, "[x1, y1, x2, y2]")


def segmentation(value: Any, where: str) -> Segmentation | None:
    """Polygons, COCO's RLE (compressed or not), null, or one flat polygon."""
    if value is None:
        return None
    if isinstance(value, dict):
        return _rle(value, where)
    if not isinstance(value, list):
        raise InputError(f"{where} is {_short(value)}; expected polygons, an RLE or null")
    polygons = [value] if value and not isinstance(value[0], list) else value
    for i, polygon in enumerate(polygons):
        if not isinstance(polygon, list):
            raise InputError(f"{where}[{i}] is {_short(polygon)}; expected a list of x, y, x, y, ...")
        for coordinate in polygon:
            number(coordinate, f"a coordinate of {where}[{i}]")
    return polygons


def instance(annotation: Any, where: str) -> Instance:
    """One of COCO's annotations: bbox xywh, segmentation, id. A category_id of -1 means that there is no object."""
    if not isinstance(annotation, dict):
        raise InputError(f"{where} is {_short(annotation)}; expected an annotation")
    if annotation.get("category_id") == -1:
        return Instance(None, None)
    box = xywh_box(annotation.get("bbox"), f"{where}.bbox")
    return Instance(
        box, segmentation(annotation.get("segmentation"), f"{where}.segmentation"), str(annotation.get("id", ""))
    )


def _four(value: Any, where: str, expected: str) -> Box:
    if not isinstance(value, list) or len(value) != 4:
        raise InputError(f"{where} is {_short(value)}; expected {expected}")
    a, b, c, d = (number(item, where) for item in value)
    return a, b, c, d


def _rle(value: dict[str, Any], where: str) -> RLE:
    size, counts = value.get("size"), value.get("counts")
    if not isinstance(size, list) or len(size) != 2:
        raise InputError(f"{where}.size is {_short(size)}; expected [height, width]")
    height, width = (int(number(item, f"{where}.size")) for item in size)
    if isinstance(counts, list):
        return masks.uncompressed_to_rle([int(number(c, f"{where}.counts")) for c in counts], height, width)
    if isinstance(counts, bytes):
        counts = counts.decode("ascii")
    return RLE(height, width, text(counts, f"{where}.counts"))


def _short(value: Any) -> str:
    if value is None:
        return "missing or null"
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
