"""Repairs of what `data_pipelines.check` finds. A record whose meaning a repair would change is dropped instead."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from data_pipelines import masks
from data_pipelines.checking.conventions import Suspicion, is_normalized, reading_of, suspect
from data_pipelines.checking.faults import Rules, shared_pictures
from data_pipelines.checking.frames import frame_of, turn
from data_pipelines.checking.geometry import (
    box_is_empty,
    clip,
    drawing,
    is_far,
    is_far_outside,
    is_inside,
    polygon_is_empty,
)
from data_pipelines.checking.pictures import PictureInfo
from data_pipelines.records import RLE, Box, Instance, Record, Segmentation, is_partial, is_training
from instancevg_jax.errors import InputError
from instancevg_jax.inputs.text import clean_expression

_ROUNDING = 2  # pixels that a stated size may differ by


class Dropped(NamedTuple):
    """A record that cannot be kept, and why."""

    record: str  # its id
    file: str  # name of its picture
    reason: str


@dataclass
class Repair:
    """The repaired records, and those that were dropped."""

    records: list[Record] = field(default_factory=list)
    changes: Counter[str] = field(default_factory=Counter)  # repair -> number of times
    dropped: list[Dropped] = field(default_factory=list)


class _UnrepairableError(Exception):
    """Why a record cannot be repaired faithfully."""


def fix(records: Sequence[Record], pictures: dict[str, PictureInfo], rules: Rules) -> Repair:
    """Repair what can be repaired without guessing. `faults.KINDS` states the repair for each kind of fault."""
    repair = Repair()
    shared = set() if rules.mixture else shared_pictures(records)
    suspicion = suspect(records, pictures)
    kept = []
    for record in records:
        changes: Counter[str] = Counter()
        try:
            if is_training(record.split) and record.image_key in shared:
                raise _UnrepairableError("its picture is in another split")
            repaired = _record(record, pictures[record.picture], suspicion, changes)
            if rules.protocol == "official" and is_partial(repaired):
                raise _UnrepairableError("an object has no mask; --protocol strict keeps it")
        except _UnrepairableError as error:
            repair.dropped.append(Dropped(record.id, record.picture, str(error)))
        else:
            kept.append(repaired)
            repair.changes += changes
    repair.records = _unique_ids(kept, repair.changes)
    return repair


def _record(record: Record, picture: PictureInfo, suspicion: Suspicion, changes: Counter[str]) -> Record:
    if picture.size is None:
        raise _UnrepairableError(f"its picture is {picture.kind.removesuffix(' picture')}")
    expressions = tuple(e for e in record.expressions if _has_words(e))
    changes["empty expressions dropped"] += len(record.expressions) - len(expressions)
    if not expressions:
        raise _UnrepairableError("no expression is left")
    record = _in_shown_frame(record, picture, changes)
    stated = [i for i in record.instances if i.box is not None or i.segmentation is not None]
    if stated:
        changes["nulls among objects dropped"] += len(record.instances) - len(stated)
    instances = tuple(_instance(i, *picture.size, suspicion, changes) for i in stated)
    return replace(record, expressions=expressions, instances=instances)


def _in_shown_frame(record: Record, picture: PictureInfo, changes: Counter[str]) -> Record:
    """The record with the picture's size, its annotations rotated if they are of the stored pixels."""
    assert picture.size
    size, stated = picture.size, (record.height, record.width)
    frame = frame_of(record, picture)
    if frame == "unknown":
        raise _UnrepairableError(
            "EXIF rotates its picture, and it states no size that tells which way it was annotated"
        )
    if frame == "stored":
        changes["records rotated as EXIF rotates their picture"] += 1
        try:
            return turn(record, picture)
        except InputError as error:
            raise _UnrepairableError(f"a mask cannot be drawn: {error}") from error
    if stated not in (size, (0, 0)):
        if not _is_only_misstated(record, size):
            raise _UnrepairableError("it was annotated at another size than the picture has")
        changes["sizes replaced by the picture's"] += 1
    return replace(record, height=size[0], width=size[1])


def _is_only_misstated(record: Record, size: tuple[int, int]) -> bool:
    """Whether the annotations are in the picture's pixels although they state another size."""
    if not any(i.box or i.segmentation for i in record.instances):
        return True
    if any(isinstance(i.segmentation, RLE) for i in record.instances):
        return False
    stated = record.height, record.width
    if max(abs(a - b) for a, b in zip(stated, size, strict=True)) <= _ROUNDING:
        return True
    return stated == size[::-1] and is_inside(record, *size) and not is_inside(record, *stated)


def _instance(instance: Instance, height: int, width: int, suspicion: Suspicion, changes: Counter[str]) -> Instance:
    if instance.box is None and not instance.segmentation:
        raise _UnrepairableError("an object has neither box nor mask")
    segmentation = _segmentation(instance.segmentation, height, width, changes)
    mask, problem = drawing(replace(instance, segmentation=segmentation), height, width)
    if problem:
        raise _UnrepairableError(f"a mask cannot be drawn: {problem}")
    return Instance(_box(instance.box, mask, height, width, suspicion, changes), segmentation, instance.id)


def _segmentation(
    segmentation: Segmentation | None, height: int, width: int, changes: Counter[str]
) -> Segmentation | None:
    if not isinstance(segmentation, list) or not segmentation:
        return segmentation or None
    if is_normalized((v for p in segmentation for v in p), (height, width)):
        raise _UnrepairableError("a mask looks normalized to 0..1")
    if any(is_far_outside(polygon, height, width) for polygon in segmentation):
        raise _UnrepairableError("a polygon reaches far outside the picture")
    with_area = [polygon for polygon in segmentation if not polygon_is_empty(polygon)]
    if not with_area:
        raise _UnrepairableError("a mask has no area")
    changes["empty polygons dropped"] += len(segmentation) - len(with_area)
    changes["odd coordinates dropped"] += sum(len(polygon) % 2 for polygon in with_area)
    return [polygon[: len(polygon) // 2 * 2] for polygon in with_area]


def _box(
    box: Box | None, mask: RLE | None, height: int, width: int, suspicion: Suspicion, changes: Counter[str]
) -> Box:
    if mask is None:
        return _lone_box(box, height, width, suspicion, changes)
    if box is None or box_is_empty(box) or is_far(box, mask):
        if box and not (box_is_empty(box) or is_normalized(box, (height, width)) or reading_of(box, mask)):
            raise _UnrepairableError("a box and its mask are far apart")
        changes["boxes drawn around their mask"] += 1
        return masks.bounds(mask)
    return _clipped(box, height, width, changes)


def _lone_box(box: Box | None, height: int, width: int, suspicion: Suspicion, changes: Counter[str]) -> Box:
    assert box is not None
    if is_normalized(box, (height, width)):
        raise _UnrepairableError("a box looks normalized to 0..1")
    if suspicion.certain:
        raise _UnrepairableError(f"boxes without a mask look like {suspicion.cause}")
    if box_is_empty(box):
        raise _UnrepairableError("a box is empty")
    return _clipped(box, height, width, changes)


def _clipped(box: Box, height: int, width: int, changes: Counter[str]) -> Box:
    clipped = clip(box, height, width)
    if is_far_outside(box, height, width) or box_is_empty(clipped):
        raise _UnrepairableError("a box reaches far outside the picture")
    changes["boxes clipped to the picture"] += clipped != box
    return clipped


def _unique_ids(records: list[Record], changes: Counter[str]) -> list[Record]:
    taken: set[tuple[str, str]] = set()
    unique = []
    for record in records:
        name, k = record.id, 1
        while (record.split, name) in taken:
            k += 1
            name = f"{record.id}#{k}"
        changes["duplicate ids changed"] += name != record.id
        taken.add((record.split, name))
        unique.append(replace(record, id=name))
    return unique


def _has_words(expression: str) -> bool:
    try:
        clean_expression(expression)
    except InputError:
        return False
    return True
