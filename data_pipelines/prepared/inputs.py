"""The inputs of `data_pipelines.prepare`: readable records, and digests of them and of their pictures."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_pipelines.annotations.pictures import why_missing
from data_pipelines.annotations.problems import Problems
from data_pipelines.annotations.reading import read_files
from data_pipelines.records import Record
from instancevg_jax.errors import InputError

_SHOWN = 5  # of the names that an error lists


def read_records(files: Sequence[Path], images: Path, captions: str, merge: str) -> list[Record]:
    """The records of all files. Raises InputError listing unreadable records, and if there are no records."""
    problems = Problems(keep=True)
    records = read_files(files, problems, images=images, captions=captions, merge=merge)
    if problems.found:
        raise InputError(
            f"{len(problems.found):,} records cannot be read: "
            + _some([f"{where}: {what}" for where, what in problems.found])
            + "; data_pipelines.check --list FILE lists all of them, --fix OUT.jsonl writes the others"
        )
    if not records:
        raise InputError(f"{', '.join(map(str, files))}: no record; expected at least one")
    return records


def digests_of(records: Sequence[Record], images: Path) -> dict[str, str]:
    """What tells a data set from others, of "records" and of "pictures". Raises InputError as `pictures_digest` does."""
    names = dict.fromkeys(record.picture for record in records)
    return {"records": records_digest(records), "pictures": pictures_digest(names, images)}


def pictures_digest(names: Iterable[str], folder: Path) -> str:
    """A digest of the names of pictures and the lengths of their files.

    Raises InputError that counts the pictures that are missing and names the first ones.
    """
    digest, missing = hashlib.sha256(), []
    for name in names:
        path = folder / name
        if path.is_file():
            digest.update(f"{name}\0{path.stat().st_size}\n".encode())
        else:
            missing.append(f"{path}{why_missing(path)}" if len(missing) < _SHOWN else str(path))
    if missing:
        raise InputError(
            f"{_some(missing)}: no such file, but the annotations name it ({len(missing):,} pictures are missing); "
            "data_pipelines.check --list FILE lists all of them, --fix OUT.jsonl drops their records"
        )
    return digest.hexdigest()


def records_digest(records: Iterable[Record]) -> str:
    """A digest of the contents of records and of their order."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(repr(record).encode())
    return digest.hexdigest()


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
