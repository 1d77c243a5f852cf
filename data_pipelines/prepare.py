"""Write annotations and pictures as a data set that loads fast.

    python -m data_pipelines.prepare grefcoco --annotations grefs/instance.json --images train2014 --data-dir DIR

All is written to a folder beside and moved into place when it is whole. A run that was cut off after the pictures goes on
with the records when it is given again.
"""

import argparse
import fcntl
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_pipelines.annotations import reading
from data_pipelines.command_line import at_least_one
from data_pipelines.prepared.builders import (
    FAMILIES,
    pictures_digest,
    records_digest,
    split_names,
    write_pictures,
    write_records,
)
from data_pipelines.prepared.sources import stored_digests
from data_pipelines.records import Record, by_split, is_partial, most_objects
from instancevg_jax.errors import InputError, run_command

_PARTS = ("pictures", "referring")


def prepare(
    family: str,
    annotation_files: list[Path],
    images: Path,
    data_dir: Path,
    num_workers: int = 4,
    overwrite: bool = False,
) -> list[Record]:
    """Read all annotation files and write them as the family's data set; returns the records.

    What is there already is kept where it is of the same records and pictures.

    Raises InputError for what `reading.read`, `write_pictures` and `write_records` raise it for, for a missing picture, and
    where other records or pictures are there and `overwrite` is not given.
    """
    if not images.is_dir():
        raise InputError(f"{images}: no such folder; expected the pictures")
    if data_dir.exists() and not data_dir.is_dir():
        raise InputError(f"{data_dir}: is a file; expected a folder to write to")
    at_least_one(num_workers, "--workers")
    records = [record for path in annotation_files for record in reading.read(path)]
    if not records:
        raise InputError(f"{', '.join(map(str, annotation_files))}: no record; expected at least one")
    split_names(records)
    names = list(dict.fromkeys(record.picture for record in records))
    digests = {"records": records_digest(records), "pictures": pictures_digest(names, images)}
    with _side_folder(data_dir, family) as side:
        if (data_dir / "referring" / family).exists() and not overwrite:
            if stored_digests(data_dir, family) != digests:
                raise InputError(
                    f"{data_dir / 'referring' / family}: holds other records or pictures than these; use --overwrite"
                )
            return records
        _take_up(side, data_dir, family)
        pictures = write_pictures(family, side, names, images, digests["pictures"], num_workers)
        write_records(family, side, records, digests["records"], pictures)
        _put_in_place(side, data_dir, family)
    return records


@contextmanager
def _side_folder(data_dir: Path, family: str) -> Iterator[Path]:
    """The folder that a data set is made in, for one process at a time. It stays where that fails, and is taken up again."""
    side = data_dir / ".preparing" / family
    try:
        side.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{data_dir}: cannot be written ({error.strerror}); expected a folder to write to") from error
    with (side.parent / f"{family}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{side}: another prepare is at work there; wait for it to end") from error
        yield side


def _take_up(side: Path, data_dir: Path, family: str) -> None:
    """Clear what killed runs have left unfinished; pictures without records are of one that was cut off."""
    shutil.rmtree(side / "replaced", ignore_errors=True)
    for unfinished in side.glob(f"*/{family}/incomplete.*"):
        shutil.rmtree(unfinished)
    placed, made = data_dir / "pictures" / family, side / "pictures" / family
    if placed.exists() and not made.exists() and not (data_dir / "referring" / family).exists():
        made.parent.mkdir(exist_ok=True)
        placed.rename(made)


def _put_in_place(side: Path, data_dir: Path, family: str) -> None:
    """Records go first and come last: cut off anywhere, none stand beside pictures that are not theirs."""
    (side / "replaced").mkdir()
    for name in reversed(_PARTS):
        if (data_dir / name / family).exists():
            (data_dir / name / family).rename(side / "replaced" / name)
    for name in _PARTS:
        (data_dir / name).mkdir(exist_ok=True)
        (side / name / family).rename(data_dir / name / family)
    shutil.rmtree(side)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines.prepare", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("family", choices=FAMILIES, help="; ".join(f"{k}: {v}" for k, v in FAMILIES.items()))
    parser.add_argument(
        "--annotations", type=Path, nargs="+", required=True, metavar="F", help="any layout of docs/data.md"
    )
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="the folder of the pictures")
    parser.add_argument("--data-dir", type=Path, required=True, metavar="DIR", help="where to write")
    parser.add_argument("--workers", type=int, default=4, help="threads that read and check pictures")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there, once the new is whole")
    args = parser.parse_args()
    records = prepare(args.family, args.annotations, args.images, args.data_dir, args.workers, args.overwrite)
    print(f"{args.data_dir}: pictures/{args.family} and referring/{args.family}")
    for split, found in by_split(records).items():
        print(f"{split}: {len(found)} records, at most {most_objects(found, 'strict')} objects in one")
        partial = sum(map(is_partial, found))
        if partial:
            print(
                f"warning: {split}: {partial} records have an object with only a box or only a mask; "
                "eval.protocol=official drops it and what follows it, eval.protocol=strict keeps it",
                file=sys.stderr,
            )


if __name__ == "__main__":
    run_command(main)
