"""Finds pictures whose names are spelled differently in the annotations and in their folder."""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from data_pipelines.annotations.problems import Problem, Problems
from data_pipelines.annotations.values import is_within
from data_pipelines.records import Record, coco_number
from instancevg_jax.errors import InputError

_SUFFIXES = {".jpg": ".jpeg", ".jpeg": ".jpg"}
_OF_A_REFERENCE = re.compile(
    r"(?<=_\d{12})_\d+(\.\w+)$"
)  # refer names references COCO_train2014_000000000309_1161269.jpg
_COCO_FOLDERS = ("train2014", "val2014", "train2017", "val2017")


def find_pictures(records: Sequence[Record], images: Path, problems: Problems) -> list[Record]:
    """Replace the names of pictures by those that exist in `images`, with a note for each change.

    A picture that is not found under any spelling keeps its name.
    """
    found = {name: _find(name, images) for name in dict.fromkeys(record.picture for record in records)}
    problems.notes += [Problem(name, f"picture found as {there}") for name, there in found.items() if there != name]
    return [r if found[r.picture] == r.picture else replace(r, picture=found[r.picture]) for r in records]


def _find(name: str, images: Path) -> str:
    if _exists(images / name):
        return name
    candidates = (spelling for spelling in _spellings(name, images.resolve().name) if is_within(spelling))
    return next((spelling for spelling in candidates if _exists(images / spelling)), name)


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be looked up ({error})") from error


def _spellings(name: str, folder: str) -> Iterator[str]:
    """Other spellings of a name: combinations of the changes that systems and tools make, then COCO's other names."""
    names = [name]
    changes: list[Callable[[str], str]] = [
        lambda n: str(PurePosixPath(n.replace("\\", "/"))),
        unquote,
        str.strip,
        lambda n: _OF_A_REFERENCE.sub(r"\1", n),
        lambda n: n.removeprefix(f"{folder}/"),
        lambda n: unicodedata.normalize("NFC", n),
        lambda n: unicodedata.normalize("NFD", n),
        lambda n: _with_suffix(n, _SUFFIXES.get(PurePosixPath(n).suffix.lower(), PurePosixPath(n).suffix)),
        lambda n: _with_suffix(n, PurePosixPath(n).suffix.lower()),
        lambda n: _with_suffix(n, PurePosixPath(n).suffix.upper()),
        str.lower,
    ]
    for change in changes:
        names += [new for new in map(change, list(names)) if new not in names]
    yield from names[1:]
    for spelled in names:
        yield from _coco_names(spelled)


def _coco_names(name: str) -> Iterator[str]:
    """The names of a picture in COCO 2014, in COCO 2017 and as a plain number (Flickr30k Entities, ReferItGame)."""
    number = coco_number(name)
    if number is None:
        return
    files = [
        f"COCO_train2014_{number:012d}.jpg",
        f"COCO_val2014_{number:012d}.jpg",
        f"{number:012d}.jpg",
        f"{number}.jpg",
    ]
    parent = PurePosixPath(name).parent
    for folder in dict.fromkeys([parent, PurePosixPath(), *(PurePosixPath(part) for part in _COCO_FOLDERS)]):
        yield from (str(folder / file) for file in files)


def _with_suffix(name: str, suffix: str) -> str:
    return name.removesuffix(PurePosixPath(name).suffix) + suffix
