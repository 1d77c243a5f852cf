"""This project's own layout: one record per line. docs/data.md has the table of keys.

{"image": "a.jpg", "split": "train", "expressions": ["the red car"], "objects": [{"box": [10, 20, 110, 80], "mask": null}]}
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_pipelines.annotations import odvg
from data_pipelines.annotations.foreign import layout_of
from data_pipelines.annotations.source import AnnotationFile, parse_json
from data_pipelines.annotations.values import (
    field,
    identifier,
    picture,
    present,
    segmentation,
    shown,
    size,
    stated,
    strings,
    text,
    xyxy_box,
)
from data_pipelines.records import RLE, Instance, Record, Segmentation
from instancevg_jax.errors import InputError
from instancevg_jax.files import atomic_file

_KEYS = {"id", "image", "width", "height", "split", "group", "expressions", "objects"}
_OBJECT_KEYS = {"id", "box", "mask"}


def read(source: AnnotationFile) -> list[Record]:
    """The records of a file of JSON lines, this project's or ODVG's. Raises InputError naming the line."""
    records: list[Record] = []
    for number, line in source.lines():
        where = f"line {number}"
        with source.at(where):
            records += read_entry(parse_json(line, where), where, source)
    return records


def read_list(content: list[Any], source: AnnotationFile) -> list[Record]:
    """The records of a JSON list with the same entries."""
    records: list[Record] = []
    for i, entry in enumerate(content):
        with source.at(f"[{i}]"):
            records += read_entry(entry, f"[{i}]", source)
    return records


def is_entry(entry: Any) -> bool:
    """Whether an item of a list looks like a record of this layout or of ODVG's."""
    return odvg.is_entry(entry) or (isinstance(entry, dict) and {"image", "expressions"} <= entry.keys())


def read_entry(entry: Any, where: str, source: AnnotationFile) -> list[Record]:
    """The record of an entry, or the records of one of ODVG's."""
    if odvg.is_entry(entry):
        return odvg.records(entry, where, source)
    if source.captions:
        raise InputError(f"{where} is no detection; --captions {source.captions} is for detection exports (COCO, ODVG)")
    _check_keys(entry, _KEYS, where)
    width, height = size(entry, where)
    return [
        Record(
            identifier(stated(entry, "id", f"{source.path.name} {where}"), f"{where}.id"),
            picture(entry.get("image"), f"{where}.image"),
            width,
            height,
            strings(entry.get("expressions"), f"{where}.expressions"),
            _objects(entry, where, source),
            text(stated(entry, "split", "train"), f"{where}.split"),
            text(stated(entry, "group", ""), f"{where}.group"),
            corners=True,
        )
    ]


def write(path: Path, records: Iterable[Record]) -> None:
    """Write records so that `read` returns them, without objects that are null; atomically. The folder is made if necessary.

    Raises InputError where the file cannot be written.
    """
    try:
        with atomic_file(path) as file:
            for record in records:
                file.write(f"{json.dumps(_entry(record), ensure_ascii=False)}\n".encode())
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error


def _objects(entry: dict[str, Any], where: str, source: AnnotationFile) -> tuple[Instance, ...]:
    if "objects" not in entry:
        raise InputError(f'{where} has no "objects"; expected a list of them, [] where nothing is meant')
    objects = field(entry, "objects", list, where)
    return tuple(_object(item, f"{where}.objects[{i}]", source) for i, item in enumerate(objects))


def _object(entry: Any, where: str, source: AnnotationFile) -> Instance:
    _check_keys(entry, _OBJECT_KEYS, where)
    box = xyxy_box(entry.get("box"), f"{where}.box")
    mask = segmentation(entry.get("mask"), f"{where}.mask", source.mask_folders)
    return present(Instance(box, mask, identifier(stated(entry, "id", ""), f"{where}.id")), where)


def _check_keys(entry: Any, known: set[str], where: str) -> None:
    if not isinstance(entry, dict):
        raise InputError(f"{where} is {shown(entry)}; expected an object with {', '.join(sorted(known))}")
    unknown = [key for key in entry if key not in known]
    if unknown and (layout := layout_of(entry)):
        raise InputError(f"{where} looks like {layout}, which is not read; expected {', '.join(sorted(known))}")
    if unknown:
        raise InputError(f"{where} has an unknown key {shown(unknown[0])}; expected {', '.join(sorted(known))}")


def _entry(record: Record) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": record.id, "image": record.picture, "width": record.width, "height": record.height}
    entry |= {"split": record.split, "expressions": list(record.expressions)}
    if record.group:
        entry["group"] = record.group
    objects = [i for i in record.instances if i.box is not None or i.segmentation is not None]
    entry["objects"] = [{"id": i.id, "box": i.box, "mask": _mask(i.segmentation)} for i in objects]
    return entry


def _mask(value: Segmentation | None) -> Any:
    return {"size": [value.height, value.width], "counts": value.counts} if isinstance(value, RLE) else value
