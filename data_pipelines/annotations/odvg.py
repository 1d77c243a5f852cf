"""ODVG, the JSON lines of Open-GroundingDino and MMDetection: phrases of a caption with their boxes, or boxes with categories.

{"filename": "a.jpg", "height": 480, "width": 640, "grounding": {"caption": "a dog and a cat",
 "regions": [{"bbox": [10, 20, 110, 80], "phrase": "a dog"}, {"bbox": [[200, 25, 290, 85]], "phrase": "a cat"}]}}
"""

from typing import Any

from data_pipelines.annotations.source import AnnotationFile, Entry
from data_pipelines.annotations.values import (
    field,
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
from data_pipelines.records import Instance, Record
from instancevg_jax.errors import InputError


def is_entry(entry: Any) -> bool:
    """Whether a line is of this layout."""
    return isinstance(entry, dict) and any(isinstance(entry.get(key), dict) for key in ("grounding", "detection"))


def records(entry: Entry, where: str, source: AnnotationFile) -> list[Record]:
    """One record per phrase of a line, with all the boxes that the line has for it.

    Raises InputError for a value that is missing or of the wrong kind, and for detections unless `source.captions` is
    "categories": then every category of the picture is a sentence.
    """
    name = picture(entry.get("filename"), f"{where}.filename")
    width, height = size(entry, where)
    split = text(stated(entry, "split", "train"), f"{where}.split")
    phrases: dict[str, list[Instance]] = {}
    for place, region, key in _regions(entry, where, source):
        for phrase in strings(region.get(key), f"{place}.{key}"):
            phrases.setdefault(phrase, []).extend(_objects(region, place, source))
    return [
        Record(
            f"{source.path.name} {where}/{phrase}", name, width, height, (phrase,), tuple(objects), split, corners=True
        )
        for phrase, objects in phrases.items()
    ]


def _regions(entry: Entry, where: str, source: AnnotationFile) -> list[tuple[str, Entry, str]]:
    """Every region with its place and the key of its sentence."""
    kind, items, key = ("detection", "instances", "category")
    if "grounding" in entry and source.captions != "categories":
        kind, items, key = ("grounding", "regions", "phrase")
    elif source.captions != "categories":
        raise InputError(
            f"{where} looks like a detection of ODVG, which has no sentences; --captions categories makes its categories' "
            "names the sentences"
        )
    regions = field(field(entry, kind, dict, where), items, list, f"{where}.{kind}")
    if not regions:
        raise InputError(f"{where}.{kind}.{items} is empty; expected at least one with bbox and {key}")
    for i, region in enumerate(regions):
        if not isinstance(region, dict):
            raise InputError(f"{where}.{kind}.{items}[{i}] is {shown(region)}; expected an object with bbox and {key}")
    return [(f"{where}.{kind}.{items}[{i}]", region, key) for i, region in enumerate(regions)]


def _objects(region: Entry, where: str, source: AnnotationFile) -> list[Instance]:
    """A region's objects: `bbox` may be a list of boxes; a single one may have a mask."""
    boxes = region.get("bbox")
    if isinstance(boxes, list) and boxes and isinstance(boxes[0], list):
        return [present(Instance(xyxy_box(b, f"{where}.bbox[{i}]"), None), where) for i, b in enumerate(boxes)]
    key = "mask" if "mask" in region else "segmentation"
    mask = segmentation(region.get(key), f"{where}.{key}", source.mask_folders)
    return [present(Instance(xyxy_box(boxes, f"{where}.bbox"), mask), where)]
