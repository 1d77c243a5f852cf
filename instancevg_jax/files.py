"""Writing a file whole or not at all."""

import os
import tempfile
from pathlib import Path

from instancevg_jax.errors import InputError


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write to a temporary name in the same folder, then rename. The folder is made if need be."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """Raise InputError unless something can be made at `path`: tried in the nearest folder that exists."""
    try:
        parent = next(folder for folder in Path(path).absolute().parents if folder.exists())
        if not parent.is_dir():
            raise InputError(f"{path}: {parent} is a file; expected a folder")
        Path(tempfile.mkdtemp(prefix=f".{Path(path).name}.", dir=parent)).rmdir()
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
