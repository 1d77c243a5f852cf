"""Every annotation file this project reads, as one list of `Record`s. `read` finds out the layout by itself.

    instance.json, instances*.json    the original's four families: a dict of splits (mixed-seg, grefs, ref-zom, rrefcoco),
                                      and the older layout of SimVG with one list of boxes an expression
    refs(unc).p, grefs(unc).json      the refer and grefer APIs, with their instances.json in the same folder
    *.json with images, annotations   COCO, where annotations carry a caption
    *.jsonl                           this project's own: one record a line, see docs/data.md

Source: datasets/base.py and datasets/pipelines/loading.py of the original; refer.py of the refer API.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_pipelines.annotations import coco, jsonl, refer, safe_pickle
from data_pipelines.annotations.problems import MALFORMED, Problems
from data_pipelines.annotations.values import (
    field,
    identifier,
    instance,
    load_json,
    number,
    picture,
    segmentation,
    strings,
    text,
    xywh_box,
)
from data_pipelines.records import Instance, Record, is_training
from instancevg_jax.errors import InputError, first_line

Entry = dict[str, Any]


def read(path: str | Path, problems: Problems | None = None) -> list[Record]:
    """All records of a file, split by split, in the file's order.

    Outside training splits a record with several expressions becomes one record an expression: evaluation counts each.
    With `problems` that are kept, records that cannot be read are noted there and left out.

    Raises:
        InputError: no such file, not JSON, no known layout, or a value that is missing or of the wrong kind; the message
            names the file and the place in it.
    """
    path, problems = Path(path), problems or Problems()
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected annotations")
    try:
        return [single for record in _read(path, problems) for single in _one_per_expression(record)]
    except InputError as error:
        message = str(error)
        raise InputError(message if str(path) in message else f"{path}: {message}") from error
    except (*MALFORMED, OSError) as error:
        raise InputError(f"{path}: malformed ({type(error).__name__}: {first_line(error)})") from error


def _read(path: Path, problems: Problems) -> list[Record]:
    if path.suffix == ".jsonl":
        return jsonl.read(path, problems)
    if path.suffix in (".p", ".pkl", ".pickle"):
        return refer.read(safe_pickle.load(path), path.parent, problems)
    content = load_json(path)
    if isinstance(content, list):
        return refer.read(content, path.parent, problems)
    if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
        return coco.read(content, problems)
    if isinstance(content, dict) and content and all(isinstance(split, list) for split in content.values()):
        return [record for split, items in content.items() for record in _split(split, items, path.parent, problems)]
    raise InputError(
        "no known layout; expected a dict of splits, COCO's images and annotations, or a list of references"
    )


def _split(split: str, items: list[Any], folder: Path, problems: Problems) -> list[Record]:
    """One split of the original's files; an item may be a list of alternatives (R-RefCOCO)."""
    text(split, "the name of a split")
    groups = _groups(split, folder, len(items)) if items and isinstance(items[0], list) else {}
    records = []
    for position, item in enumerate(items):
        where = f"{split}[{position}]"
        if isinstance(item, list):
            group = where if is_training(split) else groups.get(position, "")
            entries = [(f"{where}[{k}]", entry, group) for k, entry in enumerate(item)]
        else:
            entries = [(where, item, "")]
        for place, entry, group in entries:
            with problems.at(place):
                if not isinstance(entry, dict):
                    raise InputError(f"{place} is a {type(entry).__name__}; expected a record")
                records += [replace(r, group=group or r.group) for r in _reader(entry)(entry, split, place)]
    return records


def _groups(split: str, folder: Path, count: int) -> dict[int, str]:
    """Which group each of `count` positions belongs to, by the [start, end) ranges of the instance_index.json beside the file."""
    path = folder / "instance_index.json"
    if is_training(split) or not path.is_file():
        return {}
    index = load_json(path, str(path))
    ranges = index.get(split, []) if isinstance(index, dict) else None
    if not isinstance(ranges, list):
        raise InputError(f"{path}: {split} is {ranges!r}; expected a dict of splits, each a list of [start, end]")
    names: dict[int, str] = {}
    for k, item in enumerate(ranges):
        if not isinstance(item, list) or len(item) != 2 or not all(type(x) is int and x >= 0 for x in item):
            raise InputError(f"{path}: {split}[{k}] is {item!r}; expected [start, end], whole numbers from 0")
        names |= dict.fromkeys(range(item[0], min(item[1], count)), f"{split}/group{k}")
    return names


def _reader(entry: Entry) -> Callable[[Entry, str, str], list[Record]]:
    annotations = entry.get("annotations")
    if annotations is None:
        return _single_target
    if isinstance(annotations, list) and annotations and all(isinstance(a, list) for a in annotations):
        return _parallel_lists
    return _generalized


def _single_target(entry: Entry, split: str, where: str) -> list[Record]:
    """mixed-seg: expressions, one box and one mask."""
    target = Instance(
        xywh_box(entry.get("bbox"), f"{where}.bbox"),
        segmentation(entry.get("mask"), f"{where}.mask"),
        identifier(entry.get("id", entry.get("ann_id", "")), f"{where}.id"),
    )
    return [_record(entry, split, where, strings(entry.get("expressions"), f"{where}.expressions"), (target,))]


def _generalized(entry: Entry, split: str, where: str) -> list[Record]:
    """grefs, ref-zom, rrefcoco: expressions {raw, sent_id}, any number of annotations."""
    expressions, name = entry.get("expressions"), where
    if isinstance(expressions, dict):
        name = text(f"{split}/sent{expressions['sent_id']}" if "sent_id" in expressions else where, f"{where}.sent_id")
        expressions = expressions.get("raw")
    targets = tuple(
        instance(a, f"{where}.annotations[{i}]") for i, a in enumerate(field(entry, "annotations", list, where))
    )
    return [_record(entry, split, name, strings(expressions, f"{where}.expressions"), targets)]


def _parallel_lists(entry: Entry, split: str, where: str) -> list[Record]:
    """SimVG: `expressions`, `annotations` and `bbox` run in parallel, one list of objects an expression.

    The boxes are those of `bbox`, as SimVG takes them, where the file has it.
    """
    expressions = strings(entry.get("expressions"), f"{where}.expressions")
    lists = field(entry, "annotations", list, where)
    if len(lists) != len(expressions):
        raise InputError(f"{where} has {len(expressions)} expressions and {len(lists)} lists of annotations")
    boxes = entry.get("bbox")
    records = []
    for k, (expression, annotations) in enumerate(zip(expressions, lists, strict=True)):
        if boxes is not None:
            annotations = _with_boxes(annotations, boxes, k, where)
        targets = tuple(instance(a, f"{where}.annotations[{k}][{i}]") for i, a in enumerate(annotations))
        record = _record(entry, split, f"{where}/{k}", (expression,), targets)
        records.append(replace(record, group=where if is_training(split) else ""))
    return records


def _with_boxes(annotations: list[Any], boxes: Any, k: int, where: str) -> list[Any]:
    if not isinstance(boxes, list) or k >= len(boxes) or len(boxes[k]) != len(annotations):
        raise InputError(f"{where}.bbox and {where}.annotations differ in length at expression {k}")
    return [annotation | {"bbox": box} for annotation, box in zip(annotations, boxes[k], strict=True)]


def _record(
    entry: Entry, split: str, name: str, expressions: tuple[str, ...], instances: tuple[Instance, ...]
) -> Record:
    width, height = (int(number(entry.get(key), f"{name}.{key}")) for key in ("width", "height"))
    return Record(name, picture_name(entry, name), width, height, expressions, instances, split)


def picture_name(entry: Entry, where: str) -> str:
    """`file_name` where it is stated, else COCO's train2014 name of `image_id`, as the original forms it."""
    if "file_name" in entry:
        return picture(entry["file_name"], f"{where}.file_name")
    return f"COCO_train2014_{int(number(entry.get('image_id'), f'{where}.image_id')):012d}.jpg"


def _one_per_expression(record: Record) -> list[Record]:
    if is_training(record.split) or len(record.expressions) == 1:
        return [record]
    return [replace(record, id=f"{record.id}/{k}", expressions=(e,)) for k, e in enumerate(record.expressions)]
