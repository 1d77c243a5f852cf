"""This project's own layout, for anyone's pictures: JSON lines, one record a line. docs/data.md has the table of keys.

{"image": "a.jpg", "split": "train", "expressions": ["the red car"], "objects": [{"box": [10, 20, 110, 80], "mask": null}]}
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_pipelines.annotations.problems import Problems
from data_pipelines.annotations.values import identifier, number, picture, segmentation, strings, text, xyxy_box
from data_pipelines.records import RLE, Instance, Record, Segmentation
from instancevg_jax.errors import InputError, first_line

_KEYS = {"id", "image", "width", "height", "split", "group", "expressions", "objects"}
_OBJECT_KEYS = {"id", "box", "mask"}


def read(path: Path, problems: Problems) -> list[Record]:
    """The records of a .jsonl file. Raises InputError naming the line."""
    records = []
    with path.open("rb") as lines:
        for position, line in enumerate(lines, 1):
            if line.strip():
                with problems.at(f"line {position}"):
                    records.append(_record(line, f"line {position}", path.name))
    if not records and not problems.found:
        raise InputError("the file holds no record")
    return records


def write(path: Path, records: Iterable[Record]) -> None:
    """Write records so that `read` gives them back; atomically. The folder is made if need be.

    Raises InputError where the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps(_entry(record), ensure_ascii=False) + "\n")
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error


def _record(line: bytes, where: str, file_name: str) -> Record:
    try:
        entry = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not valid JSON in UTF-8 ({first_line(error)})") from error
    _check_keys(entry, _KEYS, where)
    objects = entry.get("objects", [])
    if not isinstance(objects, list):
        raise InputError(f"{where}.objects is {objects!r}; expected a list")
    width, height = (int(number(entry.get(key, 0), f"{where}.{key}")) for key in ("width", "height"))
    return Record(
        identifier(entry.get("id", f"{file_name} {where}"), f"{where}.id"),
        picture(entry.get("image"), f"{where}.image"),
        width,
        height,
        strings(entry.get("expressions"), f"{where}.expressions"),
        tuple(_object(o, f"{where}.objects[{i}]") for i, o in enumerate(objects)),
        text(entry.get("split", "train"), f"{where}.split"),
        text(entry.get("group", ""), f"{where}.group"),
    )


def _object(entry: Any, where: str) -> Instance:
    if entry is None:
        return Instance(None, None)
    _check_keys(entry, _OBJECT_KEYS, where)
    return Instance(
        xyxy_box(entry.get("box"), f"{where}.box"),
        segmentation(entry.get("mask"), f"{where}.mask"),
        identifier(entry.get("id", ""), f"{where}.id"),
    )


def _check_keys(entry: Any, known: set[str], where: str) -> None:
    if not isinstance(entry, dict):
        raise InputError(f"{where} is a {type(entry).__name__}; expected an object with {', '.join(sorted(known))}")
    unknown = sorted(set(entry) - known)
    if unknown:
        raise InputError(f"{where} has an unknown key {unknown[0]!r}; expected {', '.join(sorted(known))}")


def _entry(record: Record) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": record.id, "image": record.picture, "width": record.width, "height": record.height}
    entry |= {"split": record.split, "expressions": list(record.expressions)}
    if record.group:
        entry["group"] = record.group
    entry["objects"] = [{"id": i.id, "box": i.box, "mask": _mask(i.segmentation)} for i in record.instances]
    return entry


def _mask(value: Segmentation | None) -> Any:
    return {"size": [value.height, value.width], "counts": value.counts} if isinstance(value, RLE) else value
