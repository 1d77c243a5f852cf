"""Checked values of annotation files, for all readers. `where` names the place in error messages."""

import ast
import contextlib
import itertools
import json
import math
import re
import reprlib
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from data_pipelines import masks
from data_pipelines.annotations.mask_files import read_mask
from data_pipelines.annotations.source import AnnotationFile
from data_pipelines.records import RLE, Box, Instance, Segmentation
from instancevg_jax.errors import InputError

_LONGEST_NAME = 255  # bytes of one part of a path, on common file systems
_LONGEST_PATH = 1000  # bytes of a whole one; systems allow 4096, of which the folder of pictures takes a part
_DECIMAL = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*")


def field(entry: dict[str, Any], key: str, kind: type, where: str) -> Any:
    """`entry[key]`, which must be present and of type `kind`."""
    value = entry.get(key)
    if not isinstance(value, kind):
        raise InputError(f"{where}.{key} is {shown(value)}; expected a {kind.__name__}")
    return value


def stated(entry: dict[str, Any], key: str, default: Any) -> Any:
    """`entry[key]`, or `default` if it is missing or null."""
    value = entry.get(key)
    return default if value is None else value


def number(value: Any, where: str) -> float:
    """A finite number that a float can hold. An int stays an int; numbers of NumPy and decimal strings are converted."""
    if isinstance(value, np.integer | np.floating):
        value = value.item()
    if isinstance(value, str) and _DECIMAL.fullmatch(value):
        value = float(value)
        value = int(value) if value.is_integer() else value
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return value
    except OverflowError:
        pass
    raise InputError(f"{where} is {shown(value)}; expected a number")


def whole(value: Any, where: str) -> int:
    """A whole number from 0 that 64 bits can hold."""
    found = number(value, where)
    if not 0 <= found < 2**63 or found != int(found):
        raise InputError(f"{where} is {shown(value)}; expected a whole number from 0 to 2^63 - 1")
    return int(found)


def size(entry: dict[str, Any], where: str) -> tuple[int, int]:
    """(width, height) in pixels, or (0, 0) if one is missing, null, empty or 0; then the picture's size is used."""
    sides = {key: stated(entry, key, "") for key in ("width", "height")}
    if "" in sides.values():
        return 0, 0
    width, height = (whole(value, f"{where}.{key}") for key, value in sides.items())
    if not width or not height:
        return 0, 0
    try:
        masks.check_size(height, width)
    except InputError as error:
        raise InputError(f"{where} states {error}") from error
    return width, height


def text(value: Any, where: str) -> str:
    """A string of valid Unicode."""
    if not isinstance(value, str):
        raise InputError(f"{where} is {shown(value)}; expected a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where} is {shown(value)}, with an unpaired surrogate; expected valid Unicode") from error
    return value


def identifier(value: Any, where: str) -> str:
    """An id, which is a string or a number, as a string; 7, 7.0 and "7" are the same."""
    if isinstance(value, str):
        return text(value, where)
    try:
        found = number(value, where)
    except InputError as error:
        raise InputError(f"{where} is {shown(value)}; expected an id, a string or a number") from error
    return str(int(found) if found == int(found) else found)


def picture(value: Any, where: str) -> str:
    """A picture's file name, relative to the folder of pictures and within it."""
    name = text(value, where)
    if not name or "\0" in name or "://" in name or not is_within(name):
        raise InputError(f"{where} is {shown(name)}; expected a file name within the folder of pictures (--images)")
    if len(name.encode()) > _LONGEST_PATH:
        raise InputError(f"{where} is {shown(name)}; expected at most {_LONGEST_PATH} bytes")
    if max(len(part.encode()) for part in name.split("/")) > _LONGEST_NAME:
        raise InputError(
            f"{where} is {shown(name)}; expected at most {_LONGEST_NAME} bytes per name of a file or folder"
        )
    return name


def is_within(name: str) -> bool:
    """Whether a relative path, with separators of POSIX or Windows, stays within its folder."""
    path = PureWindowsPath(name)  # splits at both separators
    return not path.anchor and ".." not in path.parts and bool(path.parts)


def strings(value: Any, where: str) -> tuple[str, ...]:
    """One string or a list of at least one; each may also be an object with the string as `raw`."""
    if isinstance(value, dict) and "raw" in value:
        value = value["raw"]
    if isinstance(value, str):
        return (text(value, where),)
    if not isinstance(value, list) or not value:
        raise InputError(f"{where} is {shown(value)}; expected a string or a list of strings")
    found = [item["raw"] if isinstance(item, dict) and "raw" in item else item for item in value]
    return tuple(text(item, f"{where}[{i}]") for i, item in enumerate(found))


def coordinate(value: Any, where: str) -> float:
    """A coordinate in pixels."""
    found = number(value, where)
    if abs(found) > masks.FARTHEST:
        raise InputError(f"{where} is {shown(value)}; expected at most {masks.FARTHEST:,} pixels")
    return found


def xywh_box(value: Any, where: str) -> Box | None:
    """COCO's [x, y, width, height] as xyxy, added in float64 as in the original; null stays None."""
    if value is None:
        return None
    x, y, w, h = _four(value, where, "[x, y, width, height]")
    if w < 0 or h < 0:
        raise InputError(f"{where} is {shown(value)}, with a negative size; expected [x, y, width, height]")
    return x, y, x + w, y + h


def xyxy_box(value: Any, where: str) -> Box | None:
    """[x1, y1, x2, y2]; null stays None."""
    return None if value is None else _four(value, where, "[x1, y1, x2, y2]")


def segmentation(value: Any, where: str, folders: Sequence[Path]) -> Segmentation | None:
    """A mask in any of its forms; null stays None.

    Polygons, one polygon as a flat list or as a list of [x, y], COCO's RLE (compressed or not), a list of RLEs (refer's second
    form), or a mask picture: its file name, relative to one of `folders`, or a data URI.
    """
    value = _unquoted(value)
    if value is None:
        return None
    if isinstance(value, dict):
        return _rle(value, where)
    if isinstance(value, str):
        if re.fullmatch(r"\d+( +\d+)+", value):
            raise InputError(
                f"{where} is {shown(value)}, which looks like pairs of start and length; expected COCO's RLE"
            )
        return read_mask(text(value, where), where, folders if is_within(value) else ())
    if not isinstance(value, list):
        raise InputError(f"{where} is {shown(value)}; expected polygons, an RLE, the file name of a mask, or null")
    if value and isinstance(value[0], dict) and not {"x", "y"} <= value[0].keys():
        rles = [_rle(item, f"{where}[{i}]") for i, item in enumerate(value)]
        return masks.union(rles) if len(rles) > 1 else rles[0]
    return _polygons(value, where)


def instance(annotation: Any, where: str, source: AnnotationFile) -> Instance:
    """One of COCO's annotations: bbox xywh, segmentation, id. A category_id of -1 means that there is no object.

    Then box and segmentation are None. Raises InputError if the annotation contradicts itself.
    """
    if not isinstance(annotation, dict):
        raise InputError(f"{where} is {shown(annotation)}; expected an annotation")
    box = xywh_box(annotation.get("bbox"), f"{where}.bbox")
    mask = segmentation(annotation.get("segmentation"), f"{where}.segmentation", source.mask_folders)
    if annotation.get("category_id") == -1:
        if mask or (box and box[2] > box[0] and box[3] > box[1]):
            raise InputError(f"{where}.category_id is -1, which means no object; expected no bbox and no segmentation")
        return Instance(None, None)
    if annotation.get("empty") is False and box is None and mask is None:
        raise InputError(f"{where} is not empty, but has neither bbox nor segmentation")
    return Instance(box, mask, identifier(stated(annotation, "id", ""), f"{where}.id"))


def present(found: Instance, where: str) -> Instance:
    """`found`, if it has a box or a mask. Raises InputError otherwise: without the object, its record would change its meaning."""
    if found.box is None and not found.segmentation:
        raise InputError(f"{where} has neither a box nor a mask; expected at least one of them")
    return found


def by_id(entries: Any, where: str, source: AnnotationFile) -> dict[str, dict[str, Any]]:
    """COCO's images, annotations or categories by their `id`.

    Entries without a usable id, and different entries with the same id, are problems and left out.
    """
    if not isinstance(entries, list):
        raise InputError(f"{where} is {shown(entries)}; expected a list")
    found: dict[str, dict[str, Any]] = {}
    ambiguous = set()
    for position, entry in enumerate(entries):
        place = f"{where}[{position}]"
        with source.at(place):
            if not isinstance(entry, dict) or "id" not in entry:
                raise InputError(f"{place} is {shown(entry)}; expected an object with an id")
            key = identifier(entry["id"], f"{place}.id")
            if found.setdefault(key, entry) != entry:
                ambiguous.add(key)
                raise InputError(f"{place}.id is {shown(entry['id'])}, which another entry has; expected it once")
    return {key: entry for key, entry in found.items() if key not in ambiguous}


def shown(value: Any) -> str:
    """A value as text for error messages, shortened to about 60 characters."""
    if value is None:
        return "missing or null"
    return _Short().repr(value)


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxlong, self.maxlist, self.maxdict = 3, 60, 60, 40, 6, 4

    def repr_int(self, x: int, level: int) -> str:
        del level
        return str(x) if abs(x) < 10**40 else f"an integer of {x.bit_length()} bits"


def _unquoted(value: Any) -> Any:
    """The list or object of a string that holds its JSON, as tables store it; any other value as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def _four(value: Any, where: str, expected: str) -> Box:
    value = _unquoted(value)
    if not isinstance(value, list) or len(value) != 4:
        raise InputError(f"{where} is {shown(value)}; expected {expected}")
    a, b, c, d = (coordinate(item, where) for item in value)
    return a, b, c, d


def _polygons(value: list[Any], where: str) -> list[list[float]]:
    if value and not isinstance(value[0], list):
        value = [value]
    elif len(value) >= 3 and all(isinstance(point, list) and len(point) == 2 for point in value):
        value = [[number for point in value for number in point]]
    if _is_bitmap(value):
        raise InputError(
            f"{where} looks like a bitmap or normalized coordinates; expected polygons in pixels, an RLE, or the file name of a "
            "mask"
        )
    return [_polygon(polygon, f"{where}[{i}]") for i, polygon in enumerate(value)]


def _is_bitmap(rows: list[Any]) -> bool:
    """Whether lists hold only 0 and 1 (or false and true), or are many of one length with only 0 and another value."""
    values: set[float] = set()
    for value in itertools.chain.from_iterable(row if isinstance(row, list) else [row] for row in rows):
        if not isinstance(value, int | float) or len(values) > 2:
            return False
        values.add(value)
    alike = len(rows) >= 8 and len({len(row) for row in rows}) == 1
    return bool(values) and (values <= {0, 1} or (alike and 0 in values and len(values) == 2))


def _polygon(value: Any, where: str) -> list[float]:
    if not isinstance(value, list):
        raise InputError(f"{where} is {shown(value)}; expected a list of x, y, x, y, ...")
    if value and isinstance(value[0], list | dict):
        raise InputError(f"{where} is made of points, {shown(value[0])}; expected a flat list x, y, x, y, ...")
    place = f"a coordinate of {where}"
    return [coordinate(item, place) for item in value]


def _rle(value: Any, where: str) -> RLE:
    if not isinstance(value, dict):
        raise InputError(f"{where} is {shown(value)}; expected an RLE with size and counts")
    shape, counts = value.get("size"), _unquoted(value.get("counts"))
    if not isinstance(shape, list) or len(shape) != 2:
        raise InputError(f"{where}.size is {shown(shape)}; expected [height, width]")
    height, width = (whole(item, f"{where}.size") for item in shape)
    try:
        masks.check_size(height, width)
        if isinstance(counts, list):
            return masks.uncompressed_to_rle([whole(c, f"{where}.counts") for c in counts], height, width)
    except InputError as error:
        raise InputError(str(error) if where in str(error) else f"{where}: {error}") from error
    return RLE(height, width, _compressed(counts, f"{where}.counts"))


def _compressed(counts: Any, where: str) -> str:
    """COCO's run lengths as a string, also from bytes and from the repr of bytes."""
    if isinstance(counts, bytes):
        counts = counts.decode("latin1")
    counts = text(counts, where)
    if re.fullmatch(r"b'.*'|b\".*\"", counts):
        try:
            counts = ast.literal_eval(counts).decode("latin1")
        except (ValueError, SyntaxError) as error:
            raise InputError(f"{where} is {shown(counts)}; expected COCO's compressed run lengths") from error
    if not all("0" <= character <= "o" for character in counts):
        raise InputError(
            f"{where} is {shown(counts)}; expected COCO's compressed run lengths, or a list of them as numbers"
        )
    return counts
