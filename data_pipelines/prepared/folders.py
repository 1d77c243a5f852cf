"""A data set is written in a temporary folder, which survives interruptions, and moved into place when it is complete."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from instancevg_jax.errors import InputError
from instancevg_jax.files import locked

_PARTS = ("pictures", "referring")


@contextmanager
def side_folder(data_dir: Path, family: str) -> Iterator[Path]:
    """The folder that a data set is written in, locked for one process. After a failure it is kept for the next run to resume.

    Raises InputError where it cannot be written or another process holds it.
    """
    side = data_dir / ".preparing" / family
    try:
        side.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{data_dir}: cannot be written ({error.strerror}); expected a folder to write to") from error
    with locked(side.parent / f"{family}.lock", "another prepare is writing there; wait for it to end"):
        yield side


def take_up(side: Path, data_dir: Path, family: str) -> None:
    """Remove the incomplete files of earlier runs. Complete pictures of an interrupted run are kept."""
    shutil.rmtree(side / "replaced", ignore_errors=True)
    for unfinished in side.glob(f"*/{family}/incomplete.*"):
        shutil.rmtree(unfinished)
    placed, made = data_dir / "pictures" / family, side / "pictures" / family
    if placed.exists() and not made.exists() and not (data_dir / "referring" / family).exists():
        made.parent.mkdir(exist_ok=True)
        placed.rename(made)


def put_in_place(side: Path, data_dir: Path, family: str) -> None:
    """Move old records away first and new ones in last: an interruption never leaves records with the wrong pictures."""
    (side / "replaced").mkdir()
    for name in reversed(_PARTS):
        if (data_dir / name / family).exists():
            (data_dir / name / family).rename(side / "replaced" / name)
    for name in _PARTS:
        (data_dir / name).mkdir(exist_ok=True)
        (side / name / family).rename(data_dir / name / family)
    shutil.rmtree(side)
