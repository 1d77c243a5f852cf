"""Single values of annotation files, checked: what every reader shares. `where` names the place in messages."""

import json
import math
from pathlib import Path, PurePosixPath
from typing import Any

from data_pipelines import masks
from data_pipelines.annotations.problems import Problems
from data_pipelines.records import RLE, Box, Instance, Segmentation
from instancevg_jax.errors import InputError, first_line

_LONGEST_NAME = 255  # bytes, of a file system


def load_json(path: Path, shown: str = "") -> Any:
    """The content of a JSON file. Raises InputError where it is not valid or too deep; `shown` names it in messages."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{shown}{': ' if shown else ''}not valid JSON ({first_line(error)})") from error


def at_least_one(value: int, flag: str) -> int:
    """A number of a command line, checked."""
    if value < 1:
        raise InputError(f"{flag} is {value}; expected at least 1")
    return value


def field(entry: dict[str, Any], key: str, kind: type, where: str) -> Any:
    """`entry[key]`, which has to be there and of `kind`."""
    value = entry.get(key)
    if not isinstance(value, kind):
        raise InputError(f"{where}.{key} is {_short(value)}; expected a {kind.__name__}")
    return value


def number(value: Any, where: str) -> float:
    """A finite number, as it is (an int stays an int), that a float can hold."""
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return value
    except OverflowError:
        pass
    raise InputError(f"{where} is {_short(value)}; expected a number")


def text(value: Any, where: str) -> str:
    """A string of whole characters."""
    if not isinstance(value, str):
        raise InputError(f"{where} is {_short(value)}; expected a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where} is {_short(value)}, which has half a character; expected Unicode text") from error
    return value


def identifier(value: Any, where: str) -> str:
    """An id: a string or a number, as a string."""
    return text(value, where) if isinstance(value, str) else str(number(value, where))


def picture(value: Any, where: str) -> str:
    """A picture's file name, relative to the folder of pictures and within it."""
    name = text(value, where)
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts or "\0" in name:
        raise InputError(f"{where} is {_short(name)}; expected a file name within the folder of pictures")
    if any(len(part.encode()) > _LONGEST_NAME for part in parts):
        raise InputError(f"{where} is {_short(name)}; expected at most {_LONGEST_NAME} bytes a name")
    return name


def strings(value: Any, where: str) -> tuple[str, ...]:
    """One string or a list of at least one; each may be the `raw` of an object."""
    if isinstance(value, dict) and "raw" in value:
        value = value["raw"]
    if isinstance(value, str):
        return (text(value, where),)
    if not isinstance(value, list) or not value:
        raise InputError(f"{where} is {_short(value)}; expected a string or a list of strings")
    found = [item["raw"] if isinstance(item, dict) and "raw" in item else item for item in value]
    return tuple(text(item, f"{where}[{i}]") for i, item in enumerate(found))


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
    mask = segmentation(annotation.get("segmentation"), f"{where}.segmentation")
    return Instance(box, mask, identifier(annotation.get("id", ""), f"{where}.id"))


def by_id(entries: Any, where: str, problems: Problems) -> dict[Any, dict[str, Any]]:
    """COCO's images or annotations by their `id`. One id for two different entries is a problem; the first is kept."""
    if not isinstance(entries, list):
        raise InputError(f"{where} is {_short(entries)}; expected a list")
    found: dict[Any, dict[str, Any]] = {}
    for position, entry in enumerate(entries):
        place = f"{where}[{position}]"
        with problems.at(place):
            if not isinstance(entry, dict) or "id" not in entry:
                raise InputError(f"{place} is {_short(entry)}; expected an object with an id")
            if found.setdefault(entry["id"], entry) != entry:
                raise InputError(f"{place}.id is {_short(entry['id'])}, which another entry has; expected it once")
    return found


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
        counts = counts.decode("ascii", "replace")
    return RLE(height, width, text(counts, f"{where}.counts"))


def _short(value: Any) -> str:
    if value is None:
        return "missing or null"
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
