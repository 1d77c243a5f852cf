"""Finds faults in annotations and pictures: pure functions from records to faults."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from data_pipelines import masks
from data_pipelines.checking.conventions import Suspicion, is_normalized, reading_of, suspect
from data_pipelines.checking.frames import frame_of
from data_pipelines.checking.geometry import (
    box_is_empty,
    crosses_itself,
    drawing,
    is_far,
    is_far_outside,
    is_outside,
    polygon_is_empty,
)
from data_pipelines.checking.pictures import PictureInfo
from data_pipelines.records import RLE, Box, Instance, Record, by_split, is_training, select, split_name
from instancevg_jax.errors import InputError
from instancevg_jax.inputs.text import clean_expression, unknown_words
from instancevg_jax.inputs.tokenizer import PAD, Tokenizer

KINDS = {  # every kind of fault, in the order of the table -> what --fix does about it
    "unreadable record": "the record is dropped",
    "read with a correction": "written as it was read",
    "split that cannot be stored": "left as it is: rename it",
    "missing picture": "the records of the picture are dropped",
    "corrupt picture": "the records of the picture are dropped",
    "size differs from the picture": "the picture's size is taken where it differs by rounding or is only exchanged",
    "annotated before EXIF rotation": "the annotations are rotated as EXIF orientation rotates the picture",
    "EXIF rotation and no size stated": "the record is dropped: state the width and height that were annotated",
    "picture mirrored or turned by EXIF": "left as it is: compare with --draw",
    "null among objects": "the null is dropped",
    "object without box and mask": "the record is dropped",
    "box without mask": "the record is dropped; left as it is under protocol strict, which fills the box",
    "mask without box": "the box is drawn around the mask",
    "empty box": "the box is drawn around the mask; without a mask the record is dropped",
    "box outside the picture": "the box is clipped",
    "box far outside the picture": "the record is dropped",
    "box in another convention": "the box is drawn around the mask; without a mask the record is dropped",
    "box perhaps in another convention": "left as it is: convert the annotations, or compare with --draw",
    "box far from its mask": "the box is drawn around the mask if [x, y, width, height] or normalization explains it; "
    "otherwise the record is dropped",
    "empty polygon": "the polygon is dropped; the record, if no other polygon of the mask is left",
    "polygon with an odd number of coordinates": "the last coordinate is dropped, as COCO's drawing does",
    "polygon far outside the picture": "the record is dropped",
    "mask cannot be drawn": "the record is dropped",
    "self-crossing polygon": "left as it is: it is drawn as COCO draws it",
    "more objects than max_targets": "left as it is: raise data.max_targets",
    "empty expression": "the expression is dropped; the record, if no other expression is left",
    "expression with markup": "left as it is: it is read letter by letter",
    "expression longer than max_tokens": "left as it is: its end is cut off",
    "words unknown to the tokenizer": "left as it is: they become <unk>",
    "one sentence, different objects": "left as it is",
    "duplicate id": "a number is appended",
    "no group": "left as it is: R-RefCOCO's metrics need the ranges of an instance_index.json",
    "picture in train and in another split": "the training records of the picture are dropped",
}
_NOTES = {
    "read with a correction",
    "picture mirrored or turned by EXIF",
    "self-crossing polygon",
    "expression with markup",
    "expression longer than max_tokens",
    "words unknown to the tokenizer",
    "one sentence, different objects",
}
_MARKUP = re.compile(r"&(#\d+|#x[\da-f]+|[a-z]{2,8});|</?[a-z]+[^<>]*>", re.IGNORECASE)


@dataclass(frozen=True)
class Rules:
    """What the data will be used for."""

    tokenizer: Tokenizer | None = None  # without one, lengths and words are not checked
    max_tokens: int = 50
    max_targets: int = 10
    protocol: str = "official"
    grouped: bool = False  # evaluation splits need groups (R-RefCOCO)
    mixture: bool = False  # training pictures may be in other splits, as in the official mixture of RefCOCO/+/g


def is_note(kind: str, rules: Rules) -> bool:
    """Whether faults of this kind are harmless."""
    return (
        kind in _NOTES
        or (kind == "box without mask" and rules.protocol == "strict")
        or (kind == "picture in train and in another split" and rules.mixture)
    )


class Fault(NamedTuple):
    """One fault."""

    kind: str  # one of KINDS
    record: str  # its id; "" for faults of pictures and splits
    file: str  # name of the picture; "" if the record cannot be read
    value: str  # what was found, as text


def find(records: Sequence[Record], pictures: dict[str, PictureInfo], rules: Rules) -> Iterator[Fault]:
    """All faults: first those of splits and pictures, then those of each record."""
    yield from _of_splits(records)
    yield from _of_pictures(records, pictures)
    suspicion = suspect(records, pictures)
    for record in records:
        yield from _of_record(record, pictures[record.picture], suspicion)
        yield from _of_expressions(record, rules.tokenizer, rules.max_tokens)
        count = len(select(record, rules.protocol).objects)
        if count > rules.max_targets:
            yield _fault("more objects than max_targets", record, f"{count}, more than {rules.max_targets}")
        if rules.grouped and not record.group and not is_training(record.split):
            yield _fault("no group", record, "")
    yield from _of_sentences(records)
    yield from _of_ids(records)
    shared = shared_pictures(records)
    trained = {r.image_key: r.picture for r in records if is_training(r.split) and r.image_key in shared}
    for name in sorted(trained.values()):
        yield Fault("picture in train and in another split", "", name, "")


def shared_pictures(records: Iterable[Record]) -> set[str]:
    """The `image_key`s of pictures that are in a training split and in another split."""
    sides: tuple[set[str], set[str]] = set(), set()
    for record in records:
        sides[is_training(record.split)].add(record.image_key)
    return sides[0] & sides[1]


def _fault(kind: str, record: Record, value: str) -> Fault:
    return Fault(kind, record.id, record.picture, value)


def _of_pictures(records: Sequence[Record], pictures: dict[str, PictureInfo]) -> Iterator[Fault]:
    annotated = {r.picture for r in records if any(i.box or i.segmentation for i in r.instances)}
    for name, picture in pictures.items():
        if picture.kind:
            yield Fault(picture.kind, "", name, picture.detail)
        elif name in annotated and picture.orientation > 1 and not (picture.orientation >= 5 and _is_oblong(picture)):
            value = f"EXIF orientation {picture.orientation}; annotations have to fit the picture as viewers show it"
            yield Fault("picture mirrored or turned by EXIF", "", name, value)


def _is_oblong(picture: PictureInfo) -> bool:
    return picture.size is not None and picture.size[0] != picture.size[1]


def _of_record(record: Record, picture: PictureInfo, suspicion: Suspicion) -> Iterator[Fault]:
    size, frame = picture.size, frame_of(record, picture) if picture.size else "shown"
    height, width = (record.height, record.width) if record.height else size or (0, 0)
    if frame == "unknown":
        value = f"EXIF orientation {picture.orientation} shows the picture as {_size(size)}"
        yield _fault(
            "EXIF rotation and no size stated", record, f"{value}; the annotations may be of the stored pixels"
        )
        return
    if frame == "stored":
        value = (
            f"they are of the stored {_size(picture.stored_size)}; EXIF orientation {picture.orientation} shows it as "
        )
        yield _fault("annotated before EXIF rotation", record, value + _size(size))
        height, width = picture.stored_size or (0, 0)
    elif size and (record.height, record.width) not in (size, (0, 0)):
        value = f"stated {_size((record.height, record.width))}, the picture has {_size(size)}"
        yield _fault("size differs from the picture", record, value)
    null = sum(i.box is None and i.segmentation is None for i in record.instances)
    if null and null < len(record.instances):
        yield _fault("null among objects", record, f"{null} of {len(record.instances)}")
    for instance in record.instances:
        if instance.box is not None or instance.segmentation is not None:
            yield from _of_box(record, instance, height, width, suspicion)
            if instance.segmentation and height:
                yield from _of_mask(record, instance, height, width)


def _of_box(record: Record, instance: Instance, height: int, width: int, suspicion: Suspicion) -> Iterator[Fault]:
    box = instance.box
    if box is None:
        yield _fault(
            "mask without box" if instance.segmentation else "object without box and mask", record, instance.id
        )
        return
    if not instance.segmentation:
        yield _fault("box without mask", record, instance.id)
    value = f"{_shown(box)} in {width} x {height}"
    if height and is_normalized(box, (height, width)):
        yield _fault("box in another convention", record, f"{value} looks normalized to 0..1")
    elif height and not instance.segmentation and suspicion.cause:
        kind = "box in another convention" if suspicion.certain else "box perhaps in another convention"
        yield _fault(kind, record, f"{value}; all boxes without a mask look like {suspicion.cause}")
    elif box_is_empty(box):
        yield _fault("empty box", record, value)
    elif height and is_far_outside(box, height, width):
        if not instance.segmentation:  # else its mask may explain the box: see _of_mask
            yield _fault("box far outside the picture", record, value)
    elif height and is_outside(box, height, width):
        yield _fault("box outside the picture", record, value)


def _of_mask(record: Record, instance: Instance, height: int, width: int) -> Iterator[Fault]:
    polygons = instance.segmentation if isinstance(instance.segmentation, list) else []
    normalized = bool(polygons) and is_normalized((v for p in polygons for v in p), (height, width))
    far = [p for p in polygons if is_far_outside(p, height, width)]
    if far:
        value = f"coordinates from {min(far[0]):g} to {max(far[0]):g} in a picture of {width} x {height}"
        yield _fault("polygon far outside the picture", record, value)
        return
    if not normalized:
        yield from _of_polygons(record, instance.id, polygons)
    mask, problem = drawing(instance, height, width)
    if normalized or problem:
        value = "its coordinates look normalized to 0..1" if normalized else problem
        yield _fault("mask cannot be drawn", record, value)
    elif mask and instance.box and not is_normalized(instance.box, (height, width)):
        yield from _of_box_and_mask(record, instance.box, mask)


def _of_box_and_mask(record: Record, box: Box, mask: RLE) -> Iterator[Fault]:
    value = f"{_shown(box)} and {_shown(masks.bounds(mask))} around the mask"
    cause = reading_of(box, mask)
    if not box_is_empty(box) and is_far(box, mask):
        yield _fault("box far from its mask", record, value + (f"; the box looks like {cause}" if cause else ""))
    elif is_far_outside(box, mask.height, mask.width):
        yield _fault("box far outside the picture", record, value)


def _of_polygons(record: Record, name: str, polygons: list[list[float]]) -> Iterator[Fault]:
    drawn = [p for p in polygons if not polygon_is_empty(p)]
    odd = [len(p) for p in drawn if len(p) % 2]
    if 0 < len(drawn) < len(polygons):  # a mask of nothing else cannot be drawn
        yield _fault("empty polygon", record, f"{len(polygons) - len(drawn)} of {len(polygons)}")
    if odd:
        yield _fault("polygon with an odd number of coordinates", record, f"{odd[0]}")
    if any(len(p) % 2 == 0 and crosses_itself(p) for p in drawn):
        yield _fault("self-crossing polygon", record, name)


def _of_splits(records: Iterable[Record]) -> Iterator[Fault]:
    names: dict[str, str] = {}
    for split in by_split(records):
        try:
            other = names.setdefault(split_name(split), split)
        except InputError as error:
            yield Fault("split that cannot be stored", "", "", str(error))
        else:
            if other != split:
                value = f"{split!r} and {other!r} would be stored under the same name"
                yield Fault("split that cannot be stored", "", "", value)


def _of_sentences(records: Iterable[Record]) -> Iterator[Fault]:
    meant: dict[tuple[str, str, str], set[Any]] = {}
    for record in records:
        objects = {i.box or repr(i.segmentation) for i in record.instances if i.box or i.segmentation}
        for expression in record.expressions:
            key = (record.split, record.image_key, expression.lower().strip())
            if meant.setdefault(key, objects) != objects:
                yield _fault("one sentence, different objects", record, repr(expression))


def _of_expressions(record: Record, tokenizer: Tokenizer | None, max_tokens: int) -> Iterator[Fault]:
    for expression in record.expressions:
        try:
            cleaned = clean_expression(expression)
            last = tokenizer.encode(cleaned, max_tokens + 1)[0][-1] if tokenizer else PAD
        except InputError:
            yield _fault("empty expression", record, repr(expression))
            continue
        if markup := _MARKUP.search(expression):
            yield _fault("expression with markup", record, f"{markup[0]} in {expression!r}")
        if last != PAD:
            yield _fault("expression longer than max_tokens", record, repr(expression))
        if tokenizer and (unknown := unknown_words(tokenizer, cleaned)):
            yield _fault("words unknown to the tokenizer", record, f"{', '.join(unknown)} in {expression!r}")


def _of_ids(records: Sequence[Record]) -> Iterator[Fault]:
    counts = Counter((record.split, record.id) for record in records)
    files = {(record.split, record.id): record.picture for record in records}
    for (split, name), count in counts.items():
        if count > 1:
            yield Fault("duplicate id", name, files[split, name], f"{count} times in {split}")


def _size(size: tuple[int, int] | None) -> str:
    """(height, width) as "width x height"."""
    return f"{size[1]} x {size[0]}" if size else "unknown"


def _shown(box: Sequence[float]) -> str:
    return "({:g}, {:g}, {:g}, {:g})".format(*box)
