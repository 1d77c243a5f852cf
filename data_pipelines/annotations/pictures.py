"""Finds pictures whose names are spelled differently in the annotations and in their folder."""

import contextlib
import os
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
    folder = _Folder(images)
    found = {name: folder.find(name) for name in dict.fromkeys(record.picture for record in records)}
    problems.notes += [Problem(name, f"picture found as {there}") for name, there in found.items() if there != name]
    return [r if found[r.picture] == r.picture else replace(r, picture=found[r.picture]) for r in records]


def why_missing(path: Path) -> str:
    """What there is in place of a picture that is missing, as an addition to a message; "" if nothing is known."""
    if path.is_symlink():
        return f" (a link to {os.readlink(path)}, which is not there)"
    if path.exists():
        return f" (a {'folder' if path.is_dir() else 'device or pipe'})"
    if path.parent.is_dir():
        names = sorted(other.name for other in path.parent.iterdir() if other.stem == path.stem)
        return f" (there is {names[0]})" if names else ""
    return ""


class _Folder:
    """The folder of the pictures, with the names in it and in its subfolders as they are needed."""

    def __init__(self, images: Path) -> None:
        self.images, self.parts = images, images.resolve().parts
        self.listed: dict[Path, dict[str, list[str]]] = {}

    def find(self, name: str) -> str:
        """The name of the file that is meant by `name`, or `name` if there is none."""
        if _exists(self.images / name):
            return name
        candidates = (spelling for spelling in _spellings(name, self.parts) if is_within(spelling))
        return next((found for found in map(self._alike, candidates) if found), name)

    def _alike(self, name: str) -> str:
        """The only file whose name differs at most in case and Unicode normalization; "" if there is none."""
        path = PurePosixPath()
        for part in PurePosixPath(name).parts:
            names = self._names(self.images / path).get(_plain(part), [])
            exact = part in names
            if not (exact or len(names) == 1):
                return ""
            path /= part if exact else names[0]
        return str(path) if _exists(self.images / path) else ""

    def _names(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self.listed:
            names = self.listed[folder] = {}
            with contextlib.suppress(OSError):
                for name in os.listdir(folder):
                    names.setdefault(_plain(name), []).append(name)
        return self.listed[folder]


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be looked up ({error})") from error


def _spellings(name: str, folder: Sequence[str]) -> Iterator[str]:
    """Other spellings of a name: combinations of the changes that systems and tools make, then COCO's other names.

    Args:
        name: as it is stated.
        folder: the parts of the path of the folder of pictures, with which a name may begin.
    """
    names = [name]
    changes: list[Callable[[str], str]] = [
        lambda n: str(PurePosixPath(n.replace("\\", "/"))),
        unquote,
        str.strip,
        lambda n: _OF_A_REFERENCE.sub(r"\1", n),
        lambda n: _below(n, folder),
        lambda n: _with_suffix(n, _SUFFIXES.get(PurePosixPath(n).suffix.lower(), PurePosixPath(n).suffix)),
    ]
    for change in changes:
        names += [new for new in map(change, list(names)) if new not in names]
    yield from names
    for spelled in names:
        yield from _coco_names(spelled)


def _below(name: str, folder: Sequence[str]) -> str:
    """`name` without the folders at its beginning that are also the end of the path of `folder`."""
    parts = PurePosixPath(name).parts
    for count in range(min(len(parts) - 1, len(folder)), 0, -1):
        if parts[:count] == tuple(folder[-count:]):
            return str(PurePosixPath(*parts[count:]))
    return name


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
