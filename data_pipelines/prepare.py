"""Write annotations and pictures as a data set that loads fast.

    python -m data_pipelines.prepare grefcoco --annotations grefs/instance.json --images train2014 --data-dir data/prepared

The data set is made in a folder of its own and moved into place when it is complete. Run the same command again to resume
after an interruption.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from instancevg_jax.errors import InputError, run_command

if TYPE_CHECKING:
    from data_pipelines.records import Record


def prepare(
    family: str,
    annotation_files: Sequence[Path],
    images: Path,
    data_dir: Path,
    num_workers: int = 4,
    overwrite: bool = False,
    captions: str = "",
    merge: str = "",
) -> list["Record"]:
    """Read all annotation files and write them as the family's data set; returns the records.

    A data set of the same records and pictures that is there already is kept. `captions` and `merge` are those of
    `annotations.reading.read_files`.

    Raises InputError for annotations that cannot be read, for a missing or damaged picture, for annotations that are not in
    the picture's frame, and where another data set is there and `overwrite` is not given.
    """
    from data_pipelines.prepared.inputs import (
        read_records,
    )  # here, so that Ctrl-C while modules load ends the command cleanly

    _check_folders(images, data_dir)
    records = read_records(annotation_files, images, captions, merge)
    write_data_set(family, records, images, data_dir, num_workers, overwrite)
    return records


def write_data_set(
    family: str,
    records: Sequence["Record"],
    images: Path,
    data_dir: Path,
    num_workers: int = 4,
    overwrite: bool = False,
) -> None:
    """Write records that are already read, and their pictures. Keeps and refuses as `prepare` does."""
    from data_pipelines.command_line import at_least_one
    from data_pipelines.prepared.builders import write_pictures, write_records
    from data_pipelines.prepared.folders import put_in_place, side_folder, take_up
    from data_pipelines.prepared.inputs import digests_of
    from data_pipelines.prepared.sources import stored_digests
    from data_pipelines.records import split_names

    _check_folders(images, data_dir)
    at_least_one(num_workers, "--workers")
    split_names(records)
    names = list(dict.fromkeys(record.picture for record in records))
    digests = digests_of(records, images)
    with side_folder(data_dir, family) as side:
        if (data_dir / "referring" / family).exists() and not overwrite:
            if stored_digests(data_dir, family) != digests:
                raise InputError(
                    f"{data_dir / 'referring' / family}: holds other records or pictures than these; use --overwrite"
                )
            return
        take_up(side, data_dir, family)
        pictures = write_pictures(family, side, names, images, digests["pictures"], num_workers)
        write_records(family, side, records, digests["records"], pictures)
        put_in_place(side, data_dir, family)


def _check_folders(images: Path, data_dir: Path) -> None:
    if not images.is_dir():
        raise InputError(f"{images}: no such folder; expected the pictures")
    if data_dir.exists() and not data_dir.is_dir():
        raise InputError(f"{data_dir}: is a file; expected a folder to write to")


def _summarize(family: str, records: Sequence["Record"]) -> None:
    """Print how many records and objects each split has, and warn of what training would not use."""
    from data_pipelines.records import by_split, default_protocol, is_partial, most_objects

    protocol = default_protocol(family)
    for split, found in by_split(records).items():
        print(f"{split}: {len(found):,} records, at most {most_objects(found, 'strict')} objects in one")
        partial = sum(map(is_partial, found))
        if partial and protocol == "strict":
            print(f"  {partial:,} have an object with only a box or only a mask: eval.protocol=strict uses it")
        elif partial:
            print(
                f"warning: {split}: {partial:,} records have an object with only a box or only a mask; "
                "eval.protocol=official drops it and what follows it, eval.protocol=strict keeps it",
                file=sys.stderr,
            )
        if not most_objects(found, protocol):
            print(
                f"warning: {split}: no record has an object under eval.protocol={protocol}; a model learns from it that "
                "nothing is ever meant",
                file=sys.stderr,
            )


def main() -> None:
    """The command."""
    from data_pipelines.command_line import parser_of

    parser = parser_of("prepare", __doc__ or "")
    parser.add_argument("--data-dir", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--overwrite", action="store_true", help="replace another data set of the family that is there")
    args = parser.parse_args()
    records = prepare(
        args.family,
        args.annotations,
        args.images,
        args.data_dir,
        args.workers,
        args.overwrite,
        args.captions,
        args.merge,
    )
    print(f"{args.data_dir}: pictures/{args.family} and referring/{args.family}")
    _summarize(args.family, records)


if __name__ == "__main__":
    run_command(main)
