"""An annotation file, the options for reading it, and the list of problems found."""

import functools
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from data_pipelines.annotations.foreign import json_fault
from data_pipelines.annotations.problems import Problem, Problems
from instancevg_jax.errors import InputError, first_line
from instancevg_jax.pickles.machine import load_tree

Entry = dict[str, Any]  # an object of JSON
_MOST_BYTES = 2**31  # of a JSON document or a line after decompression: a small .gz may hold any number of zeros


@dataclass(frozen=True)
class AnnotationFile:
    """One annotation file and how to read it."""

    path: Path
    problems: Problems = field(default_factory=Problems)
    images: Path | None = None  # folder of the pictures, where it is known
    captions: str = ""  # "categories": category names of a detection export are its sentences

    @contextmanager
    def at(self, where: str) -> Iterator[None]:
        """Context for reading the record called `where`. An InputError is listed in `problems` if these are kept, else raised."""
        try:
            yield
        except InputError as error:
            if not self.problems.keep:
                raise
            self.problems.found.append(Problem(f"{self.path.name} {where}", str(error).removeprefix(f"{where}.")))

    @property
    def name(self) -> str:
        """The file's name in lower case, without `.gz`."""
        return self.path.name.lower().removesuffix(".gz")

    @property
    def mask_folders(self) -> list[Path]:
        """Folders of mask files: that of the pictures, then that of the annotations."""
        return [folder for folder in (self.images, self.path.parent) if folder]

    def load_json(self, name: str = "") -> Any:
        """The content of the file, or of the file `name` in the same folder. Raises InputError where it is not valid JSON."""
        path = self.path.with_name(name) if name else self.path
        return parse_json(_read(path), str(path))

    def load_pickle(self) -> Any:
        """The content of the file, a pickle. Raises InputError where it is damaged or holds more than plain data."""
        return load_tree(_read(self.path), str(self.path))

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """The lines that are not blank, as UTF-8, with their numbers from 1."""
        with opened(self.path) as file:
            encoding = json.detect_encoding(file.peek(4)[:4])  # pyright: ignore[reportAttributeAccessIssue]
            text = None if encoding.startswith("utf-8") else io.TextIOWrapper(file, encoding, newline="\n")
            read = functools.partial((text or file).readline, _MOST_BYTES + 1)
            for number, found in enumerate(iter(read, "" if text else b""), 1):
                line = found.encode() if isinstance(found, str) else found
                if len(line) > _MOST_BYTES:
                    raise InputError(f"{self.path}: line {number} has more than {_MOST_BYTES:,} bytes")
                if line.strip():
                    yield number, line


def _read(path: Path) -> bytes:
    with opened(path) as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise InputError(f"{path}: more than {_MOST_BYTES:,} bytes; expected less in one document")
    return data


def parse_json(data: bytes, where: str) -> Any:
    """A JSON value in UTF-8 (a byte order mark is allowed), UTF-16 or UTF-32. Raises InputError naming `where`."""
    try:
        return json.loads(data)
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not valid JSON in UTF-8 ({first_line(error)}); save it as UTF-8") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not valid JSON ({json_fault(error)})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not valid JSON ({first_line(error)})") from error


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file for reading, decompressed if its content is compressed by gzip. Raises InputError if opening or reading fails."""
    try:
        with path.open("rb") as raw:
            file = gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == b"\x1f\x8b" else raw
            yield cast("BinaryIO", file)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path}: damaged, its compressed data cannot be read ({first_line(error)})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: its text cannot be read ({first_line(error)}); save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or first_line(error)})") from error
