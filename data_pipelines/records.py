"""The typed record for every annotation, and the selection of its objects by a protocol."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from instancevg_jax.errors import InputError

Box = tuple[float, float, float, float]  # (x1, y1, x2, y2) in pixels of the picture
FAMILIES = {
    "refcoco": "RefCOCO, RefCOCO+ and RefCOCOg: one object per sentence",
    "grefcoco": "gRefCOCO: none, one or many objects per sentence",
    "refzom": "Ref-ZOM: none, one or many objects per sentence",
    "rrefcoco": "R-RefCOCO, R-RefCOCO+, R-RefCOCOg: sentences of one object in groups, with negatives",
    "custom": "your own data",
}
Polygons = list[list[float]]  # [[x, y, x, y, ...], ...] in pixels; the object is their union


@dataclass(frozen=True)
class RLE:
    """A mask in COCO's compressed run-length encoding."""

    height: int
    width: int
    counts: str


Segmentation = Polygons | RLE


@dataclass(frozen=True)
class Instance:
    """One object as stated in its file. None means null or a missing key; both None means that there is no object."""

    box: Box | None
    segmentation: Segmentation | None
    id: str = ""


@dataclass(frozen=True)
class Record:
    """A picture, sentences about it, and the objects that they mean, in the file's order and with its nulls."""

    id: str
    picture: str  # file name, relative to the folder of pictures
    width: int  # pixels; width and height are 0 where the file does not state them
    height: int
    expressions: tuple[str, ...]  # sentences for the same objects; training draws one at random
    instances: tuple[Instance, ...]
    split: str
    group: str = ""  # training: alternatives, of which one is drawn; evaluation: sentences of one object (R-RefCOCO)
    corners: bool = field(default=False, compare=False, repr=False)  # the file states boxes as x1, y1, x2, y2

    @property
    def image_key(self) -> str:
        """Equal for records of the same picture: COCO's number if the file name has one, else the file name."""
        number = coco_number(self.picture)
        return self.picture if number is None else str(number)


class Selection(NamedTuple):
    """The objects and masks of a record under a protocol."""

    objects: tuple[Instance, ...]  # each is a target with its own box and mask
    merged: tuple[Segmentation, ...]  # the merged mask is their union


def select(record: Record, protocol: str) -> Selection:
    """The objects that a record's expressions mean, and the segmentations that make up the merged mask.

    "official" stops where the original stops (its loading.py: `_load_bboxes`, `_load_masks`, `_load_masks_parts`): objects
    end at the first null box or null or empty segmentation, the merged mask at the first null segmentation. "strict"
    skips nulls only; an object with only a box or only a mask is kept.
    """
    if protocol == "strict":
        objects = tuple(i for i in record.instances if i.box is not None or i.segmentation)
        return Selection(objects, tuple(i.segmentation for i in objects if i.segmentation))
    objects = _until(record.instances, lambda i: i.box is None or not i.segmentation)
    merged = _until(record.instances, lambda i: i.segmentation is None)
    return Selection(objects, tuple(i.segmentation for i in merged if i.segmentation))


def coco_number(picture: str) -> int | None:
    """COCO's number of a picture, from a file name like COCO_train2014_000000000009.jpg or 000000000009.jpg; else None."""
    found = re.search(r"(?:^|[/_])(\d{12})\.\w+$", picture)
    return int(found[1]) if found else None


def default_protocol(family: str) -> str:
    """ "strict" for your own data; "official" for the published data sets, which are read as in the original."""
    return "strict" if family == "custom" else "official"


def is_partial(record: Record) -> bool:
    """Whether an object has only a box or only a mask. "official" drops such an object and all that follow it."""
    return any((i.box is None) != (not i.segmentation) for i in record.instances)


def most_objects(records: Iterable[Record], protocol: str) -> int:
    """The largest number of objects in one record, and so the smallest `max_targets` for these records."""
    return max((len(select(record, protocol).objects) for record in records), default=0)


def is_training(split: str) -> bool:
    """Whether a split is for training: its name starts with "train". Training draws from expressions and groups."""
    return split.startswith("train")


def units(records: list[Record]) -> list[range]:
    """Index ranges into `records`, each of which is one item of an epoch.

    In a training split, consecutive records of the same `group` are one item, of which the loader draws one record (as the
    original does for R-RefCOCO and SimVG's layout); any other record is an item. Source: `__call__` of the original's loaders.
    """
    starts = [
        i
        for i, record in enumerate(records)
        if i == 0 or not record.group or not is_training(record.split) or record.group != records[i - 1].group
    ]
    return [range(a, b) for a, b in zip(starts, [*starts[1:], len(records)], strict=True)]


def split_name(split: str) -> str:
    """The name under which a split is stored, "+" as "plus". Raises InputError for a name that cannot be stored."""
    name = split.replace("+", "plus")
    if not re.fullmatch(r"\w+", name) or name == "all":
        raise InputError(f"a split is called {split!r}; expected letters, digits and _, and not 'all'")
    return name


def split_names(records: Iterable[Record]) -> list[str]:
    """The stored names of the records' splits, in order. Raises InputError as `split_name` does, and for two of one name."""
    names: dict[str, str] = {}
    for split in by_split(records):
        other = names.setdefault(split_name(split), split)
        if other != split:
            raise InputError(
                f"splits {other!r} and {split!r} would both be stored as {split_name(split)!r}; rename one"
            )
    return list(names)


def by_split(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The records of each split, in order."""
    splits: dict[str, list[Record]] = {}
    for record in records:
        splits.setdefault(record.split, []).append(record)
    return splits


def _until(instances: tuple[Instance, ...], stop: Callable[[Instance], bool]) -> tuple[Instance, ...]:
    end = next((i for i, instance in enumerate(instances) if stop(instance)), len(instances))
    return instances[:end]
