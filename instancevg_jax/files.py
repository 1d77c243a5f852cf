"""Files that are written completely or not at all, and locks on folders."""

import errno
import json
import os
import platform
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


def append_line(path: str | Path, line: str) -> None:
    """Append a line to a file, completely or not at all. Raises InputError if the disk is full."""
    data = f"{line}\n".encode()
    with Path(path).open("ab", buffering=0) as file:
        end = file.tell()
        try:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            file.truncate(end)
            raise InputError(f"{path}: a line was not written ({error.strerror})") from error


def check_writable(path: str | Path) -> None:
    """Raise InputError unless a file or folder can be made at `path`: tried in the nearest folder that exists."""
    try:
        parent = next(folder for folder in Path(path).absolute().parents if folder.exists())
        if not parent.is_dir():
            raise InputError(f"{path}: {parent} is a file; expected a folder")
        Path(tempfile.mkdtemp(prefix=f".{Path(path).name}.", dir=parent)).rmdir()
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error


@contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Hold an exclusive lock on a file, made if necessary. The system releases it when the process ends, however it ends.

    Raises InputError with `refusal` if another process holds the lock, and where there are no locks or the file cannot be written.
    """
    try:
        import fcntl
    except ModuleNotFoundError as error:  # Windows
        raise InputError("file locks need Linux or macOS; on Windows, use WSL") from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise InputError(f"{path.parent}: {refusal} ({file.read(100).strip() or 'unknown'})") from error
        except OSError as error:
            raise InputError(
                f"{path}: cannot be locked ({error.strerror}); expected a file system with locks"
            ) from error
        file.truncate(0)
        file.write(json.dumps({"host": platform.node(), "pid": os.getpid()}))
        file.flush()
        yield
