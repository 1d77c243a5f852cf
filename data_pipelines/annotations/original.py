"""The original's layouts: a dict of splits, as in mixed-seg, grefs, ref-zom and rrefcoco, and SimVG's parallel lists.

Source: datasets/base.py and datasets/pipelines/loading.py of InstanceVG and SimVG.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from data_pipelines.annotations.source import AnnotationFile, Entry
from data_pipelines.annotations.values import (
    field,
    identifier,
    instance,
    picture,
    present,
    segmentation,
    shown,
    size,
    stated,
    strings,
    text,
    whole,
    xywh_box,
)
from data_pipelines.records import Instance, Record, is_training
from instancevg_jax.errors import InputError

INDEX = "instance_index.json"


def read(content: dict[str, list[Any]], source: AnnotationFile) -> list[Record]:
    """The records of all splits. An item of a split may be a list of alternatives (R-RefCOCO)."""
    return [record for split, items in content.items() for record in _split(split, items, source)]


def _split(split: str, items: list[Any], source: AnnotationFile) -> list[Record]:
    text(split, "the name of a split")
    groups = _groups(split, len(items), source) if any(isinstance(item, list) for item in items) else {}
    records: list[Record] = []
    for position, item in enumerate(items):
        where = f"{split}[{position}]"
        if isinstance(item, list):
            group = where if is_training(split) else groups.get(position, "")
            entries = [(f"{where}[{k}]", entry, group) for k, entry in enumerate(item)] or [(where, item, "")]
        else:
            entries = [(where, item, "")]
        for place, entry, group in entries:
            with source.at(place):
                if not isinstance(entry, dict):
                    raise InputError(f"{place} is {shown(entry)}; expected a record")
                records += [replace(r, group=group or r.group) for r in _reader(entry)(entry, split, place, source)]
    return records


def _groups(split: str, count: int, source: AnnotationFile) -> dict[int, str]:
    """The group of each of `count` positions, from the [start, end) ranges of instance_index.json in the same folder."""
    path = source.path.with_name(INDEX)
    if is_training(split) or not path.is_file():
        return {}
    index = source.load_json(INDEX)
    ranges = index.get(split, []) if isinstance(index, dict) else None
    if not isinstance(ranges, list):
        raise InputError(f"{path}: {split} is {shown(ranges)}; expected a dict of splits, each a list of [start, end]")
    names: dict[int, str] = {}
    for k, item in enumerate(ranges):
        if not isinstance(item, list) or len(item) != 2 or not all(type(x) is int and x >= 0 for x in item):
            raise InputError(f"{path}: {split}[{k}] is {shown(item)}; expected [start, end], whole numbers from 0")
        names |= dict.fromkeys(range(item[0], min(item[1], count)), f"{split}/group{k}")
    return names


def _reader(entry: Entry) -> Callable[[Entry, str, str, AnnotationFile], list[Record]]:
    annotations = entry.get("annotations")
    if annotations is None:
        return _single_target
    if isinstance(annotations, list) and any(isinstance(a, list) for a in annotations):
        return _generalized if isinstance(entry.get("expressions"), dict) else _parallel_lists
    return _generalized


def _single_target(entry: Entry, split: str, where: str, source: AnnotationFile) -> list[Record]:
    """mixed-seg, Flickr30k Entities, ReferItGame: expressions, one box and at most one mask."""
    target = Instance(
        xywh_box(entry.get("bbox"), f"{where}.bbox"),
        segmentation(entry.get("mask"), f"{where}.mask", source.mask_folders),
        identifier(stated(entry, "id", stated(entry, "ann_id", "")), f"{where}.id"),
    )
    expressions = strings(entry.get("expressions"), f"{where}.expressions")
    return [_record(entry, split, where, expressions, (present(target, where),), source)]


def _generalized(entry: Entry, split: str, where: str, source: AnnotationFile) -> list[Record]:
    """grefs, ref-zom, rrefcoco: expressions {raw, sent_id}, any number of annotations; null ones are kept."""
    expressions, name = entry.get("expressions"), where
    if isinstance(expressions, dict):
        if "sent_id" in expressions:
            name = f"{split}/sent{identifier(expressions['sent_id'], f'{where}.sent_id')}"
        expressions = expressions.get("raw")
    annotations = field(entry, "annotations", list, where)
    targets = tuple(instance(a, f"{where}.annotations[{i}]", source) for i, a in enumerate(annotations))
    return [_record(entry, split, name, strings(expressions, f"{where}.expressions"), targets, source)]


def _parallel_lists(entry: Entry, split: str, where: str, source: AnnotationFile) -> list[Record]:
    """SimVG: parallel lists `expressions`, `annotations` and `bbox`, with one list of objects per expression.

    If the file has `bbox`, the boxes are taken from there, as SimVG does.
    """
    expressions = strings(entry.get("expressions"), f"{where}.expressions")
    lists = field(entry, "annotations", list, where)
    if len(lists) != len(expressions):
        raise InputError(f"{where} has {len(expressions)} expressions and {len(lists)} lists of annotations")
    records = []
    for k, (expression, annotations) in enumerate(zip(expressions, lists, strict=True)):
        if not isinstance(annotations, list) or not annotations:
            raise InputError(
                f"{where}.annotations[{k}] is {shown(annotations)}; expected a list of annotations, one with category_id -1 "
                "where nothing is meant"
            )
        if entry.get("bbox") is not None:
            annotations = _with_boxes(annotations, entry["bbox"], k, where)
        targets = tuple(instance(a, f"{where}.annotations[{k}][{i}]", source) for i, a in enumerate(annotations))
        record = _record(entry, split, f"{where}/{k}", (expression,), targets, source)
        records.append(replace(record, group=where if is_training(split) else ""))
    return records


def _with_boxes(annotations: list[Any], boxes: Any, k: int, where: str) -> list[Any]:
    """The annotations of expression `k` with the boxes of `bbox` instead of their own."""
    own = boxes[k] if isinstance(boxes, list) and k < len(boxes) else None
    if not isinstance(own, list) or len(own) != len(annotations):
        raise InputError(f"{where}.bbox and {where}.annotations differ in length at expression {k}")
    return [a | {"bbox": box} if isinstance(a, dict) else a for a, box in zip(annotations, own, strict=True)]


def _record(
    entry: Entry,
    split: str,
    name: str,
    expressions: tuple[str, ...],
    instances: tuple[Instance, ...],
    source: AnnotationFile,
) -> Record:
    width, height = size(entry, name)
    return Record(name, _picture(entry, name, source), width, height, expressions, instances, split)


def _picture(entry: Entry, where: str, source: AnnotationFile) -> str:
    """`file_name` if it is stated, else the name that the original derives from `image_id`.

    This is COCO's train2014 name or, in SimVG's mixture, `%d.jpg` for a `data_source` other than COCO, in a folder of that
    name if there is one.
    """
    if entry.get("file_name") is not None:
        return picture(entry["file_name"], f"{where}.file_name")
    number = whole(entry.get("image_id"), f"{where}.image_id")
    data_source = entry.get("data_source")
    if data_source is None:
        return picture(f"COCO_train2014_{number:012d}.jpg", f"{where}.image_id")
    name = (
        f"COCO_train2014_{number:012d}.jpg" if "coco" in text(data_source, f"{where}.data_source") else f"{number}.jpg"
    )
    inside = picture(f"{data_source}/{name}", f"{where}.data_source")
    return inside if source.images and (source.images / inside).is_file() else picture(name, f"{where}.image_id")
