"""Pickles of the refer API, whose sentences are plain containers, numbers and strings."""

from pathlib import Path
from typing import Any

from instancevg_jax.errors import InputError
from instancevg_jax.pickles.machine import load_tree


def load(path: Path) -> Any:
    """The content of a pickle file. Raises InputError where it is damaged or names anything beyond plain data."""
    try:
        return load_tree(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
