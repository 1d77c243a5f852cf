"""What can be wrong with annotations and pictures: pure functions from records to faults."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

from data_pipelines import masks
from data_pipelines.prepared.builders import split_name
from data_pipelines.records import RLE, Box, Instance, Protocol, Record, by_split, is_training, select
from instancevg_jax.errors import InputError
from instancevg_jax.inputs.pictures import load_picture
from instancevg_jax.inputs.text import clean_expression
from instancevg_jax.inputs.tokenizer import PAD, Tokenizer

_MARGIN = 1.0  # pixels that a box may reach beyond its picture: COCO's annotators rounded so
_FAR = 0.3  # IoU of a box with the one around its mask; below, the two are of different objects or conventions
_CHUNK = 512  # edges at a time: 4,000 points would take 0.7 GB at once
KINDS = {  # what is looked for, in the table's order, and what --fix does about it
    "unreadable record": "it is dropped",
    "split that cannot be stored": "left as it is",
    "missing picture": "the record is dropped",
    "corrupt picture": "the record is dropped",
    "size differs from the picture": "the picture's size is taken; dropped where a mask is stored at another size",
    "null among objects": "the null is dropped",
    "box without mask": "the record is dropped; left as it is under protocol strict, which fills the box",
    "mask without box": "the box is drawn around the mask",
    "empty box": "drawn around the mask; without a mask the object is dropped",
    "box outside the picture": "clipped",
    "box far from its mask": "the box is drawn around the mask",
    "empty polygon": "the polygon is dropped; a mask of nothing else becomes null",
    "polygon with an odd number of coordinates": "the last one is dropped, as COCO's drawing does",
    "mask cannot be drawn": "the mask is dropped, and what then is a box without mask treated so",
    "self-crossing polygon": "left as it is: it is drawn as COCO draws it",
    "more objects than max_targets": "left as it is: raise data.max_targets",
    "empty expression": "the expression is dropped, and a record without any",
    "expression longer than max_tokens": "left as it is: its end is cut off",
    "one sentence, different objects": "left as it is",
    "duplicate id": "a number is appended",
    "no group": "left as it is: R-RefCOCO's metrics need the ranges of an instance_index.json",
    "picture in train and in another split": "the training record is dropped",
}
_NOTES = {"self-crossing polygon", "expression longer than max_tokens", "one sentence, different objects"}


@dataclass(frozen=True)
class Rules:
    """What the data is meant for."""

    tokenizer: Tokenizer | None = None  # without one, lengths are not looked at
    max_tokens: int = 50
    max_targets: int = 10
    protocol: Protocol = "official"
    grouped: bool = False  # evaluation splits need groups (R-RefCOCO)


def is_note(kind: str, protocol: Protocol) -> bool:
    """Whether faults of this kind do no harm."""
    return kind in _NOTES or (kind == "box without mask" and protocol == "strict")


class Fault(NamedTuple):
    """One thing that is wrong."""

    kind: str  # one of KINDS
    where: str  # record id or file name
    detail: str


class Picture(NamedTuple):
    """What a picture's file turned out to be: its size, or the kind of its fault."""

    size: tuple[int, int] | None  # (height, width)
    kind: str = ""
    detail: str = ""


def look_at_pictures(names: Sequence[str], folder: Path, num_workers: int) -> dict[str, Picture]:
    """Decode every named picture once."""
    with ThreadPoolExecutor(num_workers) as pool:
        return dict(zip(names, pool.map(lambda name: _look_at(folder / name), names), strict=True))


def find(records: Sequence[Record], pictures: dict[str, Picture], rules: Rules) -> Iterator[Fault]:
    """All faults, those of one record after those of another."""
    yield from _of_splits(records)
    for name, picture in pictures.items():
        if picture.kind:
            yield Fault(picture.kind, name, picture.detail)
    for record in records:
        yield from _of_record(record, pictures[record.picture].size)
        yield from _of_expressions(record, rules.tokenizer, rules.max_tokens)
        count = len(select(record, rules.protocol).objects)
        if count > rules.max_targets:
            yield Fault("more objects than max_targets", record.id, f"{count}, more than {rules.max_targets}")
        if rules.grouped and not record.group and not is_training(record.split):
            yield Fault("no group", record.id, "")
    yield from _of_sentences(records)
    yield from _of_ids(records)
    shared = shared_pictures(records)
    trained = {r.image_key: r.picture for r in records if is_training(r.split) and r.image_key in shared}
    for name in sorted(trained.values()):
        yield Fault("picture in train and in another split", name, "")


def shared_pictures(records: Iterable[Record]) -> set[str]:
    """The `image_key`s of pictures of training splits that other splits have too."""
    sides: tuple[set[str], set[str]] = set(), set()
    for record in records:
        sides[is_training(record.split)].add(record.image_key)
    return sides[0] & sides[1]


def crosses_itself(polygon: Sequence[float]) -> bool:
    """Whether two edges of a closed polygon x, y, x, y, ... cross. Edges that only touch or overlap do not count."""
    start = np.asarray(polygon, np.float64).reshape(-1, 2)
    end = np.roll(start, -1, axis=0)
    for i in range(0, len(start), _CHUNK):
        ours, theirs = (start[i : i + _CHUNK], end[i : i + _CHUNK]), (start, end)
        if (_splits(*ours, *theirs) & _splits(*theirs, *ours).T).any():
            return True
    return False


def box_is_empty(box: Box) -> bool:
    """No width or no height."""
    return not (box[2] > box[0] and box[3] > box[1])


def polygon_is_empty(polygon: Sequence[float]) -> bool:
    """Fewer than three points, or no area at all."""
    points = np.asarray(polygon[: len(polygon) // 2 * 2], np.float64).reshape(-1, 2)
    return len(points) < 3 or bool((points == points[0]).all(axis=0).any())


def is_far(box: Box, mask: RLE) -> bool:
    """Whether a box has little in common with the one around the mask of its object."""
    around = masks.bounds(mask)
    shared = max(0, min(box[2], around[2]) - max(box[0], around[0]))
    shared *= max(0, min(box[3], around[3]) - max(box[1], around[1]))
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (box, around)]
    return shared < _FAR * (sum(areas) - shared)


def _splits(
    start: Float64[np.ndarray, "n 2"],
    end: Float64[np.ndarray, "n 2"],
    other_start: Float64[np.ndarray, "m 2"],
    other_end: Float64[np.ndarray, "m 2"],
) -> Bool[np.ndarray, "n m"]:
    """Which of n edges' lines have the ends of which of m others on their two sides."""
    return _side(start, end, other_start) * _side(start, end, other_end) < 0


def _side(
    start: Float64[np.ndarray, "n 2"], end: Float64[np.ndarray, "n 2"], points: Float64[np.ndarray, "m 2"]
) -> Float64[np.ndarray, "n m"]:
    """On which side of each edge each point lies: the sign of the cross product."""
    edge, offset = (end - start)[:, None], points[None] - start[:, None]
    return edge[..., 0] * offset[..., 1] - edge[..., 1] * offset[..., 0]


def _look_at(path: Path) -> Picture:
    if not path.is_file():
        return Picture(None, "missing picture", str(path))
    try:
        height, width = load_picture(path).shape[:2]
    except InputError as error:
        return Picture(None, "corrupt picture", str(error))
    return Picture((height, width))


def _of_record(record: Record, size: tuple[int, int] | None) -> Iterator[Fault]:
    if size and (record.height, record.width) not in (size, (0, 0)):
        stated = f"stated {record.width} x {record.height}, the picture has {size[1]} x {size[0]}"
        yield Fault("size differs from the picture", record.id, stated)
    height, width = (record.height, record.width) if record.height else size or (0, 0)
    null = [i for i in record.instances if i.box is None and i.segmentation is None]
    if null and len(null) < len(record.instances):
        yield Fault("null among objects", record.id, f"{len(null)} of {len(record.instances)}")
    for instance in record.instances:
        if instance in null:
            continue
        yield from _of_box(record, instance, height, width)
        if height:
            yield from _of_mask(record, instance, height, width)


def _of_box(record: Record, instance: Instance, height: int, width: int) -> Iterator[Fault]:
    if instance.box is None:
        yield Fault("mask without box", record.id, instance.id)
        return
    if not instance.segmentation:
        yield Fault("box without mask", record.id, instance.id)
    x1, y1, x2, y2 = instance.box
    shown = f"({x1:g}, {y1:g}, {x2:g}, {y2:g}) in {width} x {height}"
    if box_is_empty(instance.box):
        yield Fault("empty box", record.id, shown)
    if height and (min(x1, y1) < -_MARGIN or x2 > width + _MARGIN or y2 > height + _MARGIN):
        yield Fault("box outside the picture", record.id, shown)


def _of_mask(record: Record, instance: Instance, height: int, width: int) -> Iterator[Fault]:
    if isinstance(instance.segmentation, list):
        empty = [polygon_is_empty(p) for p in instance.segmentation]
        odd = [len(p) for p in instance.segmentation if len(p) % 2]
        if any(empty) or not instance.segmentation:
            yield Fault("empty polygon", record.id, f"{sum(empty)} of {len(empty)}")
        if odd:
            yield Fault("polygon with an odd number of coordinates", record.id, f"{odd[0]}")
        if any(
            not bad and len(p) % 2 == 0 and crosses_itself(p)
            for bad, p in zip(empty, instance.segmentation, strict=True)
        ):
            yield Fault("self-crossing polygon", record.id, instance.id)
    mask, problem = drawing(instance, height, width)
    if problem:
        yield Fault("mask cannot be drawn", record.id, problem)
    elif mask and instance.box and not box_is_empty(instance.box) and is_far(instance.box, mask):
        shown = "({:g}, {:g}, {:g}, {:g}) and ({:g}, {:g}, {:g}, {:g})".format(*instance.box, *masks.bounds(mask))
        yield Fault("box far from its mask", record.id, shown)


def drawing(instance: Instance, height: int, width: int) -> tuple[RLE | None, str]:
    """The mask of an object, if it has one, and why it cannot be drawn or has no pixel; "" where all is well."""
    segmentation = instance.segmentation
    if isinstance(segmentation, list):
        segmentation = [p for p in segmentation if not polygon_is_empty(p)]
    if not segmentation:
        return None, ""
    try:
        mask = masks.to_rle(segmentation, height, width)
    except InputError as error:
        return None, str(error)
    return mask, "" if masks.area(mask) else "no pixel of it lies in the picture"


def _of_splits(records: Iterable[Record]) -> Iterator[Fault]:
    names: dict[str, str] = {}
    for split in by_split(records):
        try:
            other = names.setdefault(split_name(split), split)
        except InputError as error:
            yield Fault("split that cannot be stored", split, str(error))
        else:
            if other != split:
                yield Fault("split that cannot be stored", split, f"{other!r} would be stored under the same name")


def _of_sentences(records: Iterable[Record]) -> Iterator[Fault]:
    meant: dict[tuple[str, str, str], set[Any]] = {}
    for record in records:
        objects = {i.box or repr(i.segmentation) for i in record.instances if i.box or i.segmentation}
        for expression in record.expressions:
            key = (record.split, record.image_key, expression.lower().strip())
            if meant.setdefault(key, objects) != objects:
                yield Fault("one sentence, different objects", record.id, repr(expression))


def _of_expressions(record: Record, tokenizer: Tokenizer | None, max_tokens: int) -> Iterator[Fault]:
    for expression in record.expressions:
        try:
            cleaned = clean_expression(expression)
            last = tokenizer.encode(cleaned, max_tokens + 1)[0][-1] if tokenizer else PAD
        except InputError:
            yield Fault("empty expression", record.id, repr(expression))
            continue
        if last != PAD:
            yield Fault("expression longer than max_tokens", record.id, repr(expression))


def _of_ids(records: Sequence[Record]) -> Iterator[Fault]:
    counts = Counter((record.split, record.id) for record in records)
    for (split, name), count in counts.items():
        if count > 1:
            yield Fault("duplicate id", name, f"{count} times in {split}")
