"""Files that are written completely or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from instancevg_jax.errors import InputError


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """A temporary file in the folder of `path`, renamed to it when the context ends without an error.

    The folder is made if necessary. A link is followed. A device or a pipe, such as /dev/stdout, is written to directly.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file() and not path.is_dir():
        with path.open("wb") as file:
            yield file
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write a file through `atomic_file`."""
    with atomic_file(path) as file:
        file.write(data)


def check_writable(path: str | Path) -> None:
    """Raise InputError unless a file or folder can be made at `path`: tried in the nearest folder that exists."""
    try:
        parent = next(folder for folder in Path(path).absolute().parents if folder.exists())
        if not parent.is_dir():
            raise InputError(f"{path}: {parent} is a file; expected a folder")
        Path(tempfile.mkdtemp(prefix=f".{Path(path).name}.", dir=parent)).rmdir()
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
