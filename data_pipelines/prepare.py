"""Write annotations and pictures as a data set that loads fast.

    python -m data_pipelines.prepare grefcoco --annotations grefs/instance.json --images train2014 --data-dir DIR

The pictures are written first and kept: a run that is cut off afterwards goes on with the records. Both are written to a
temporary folder that is renamed when it is whole.
"""

import argparse
import shutil
from pathlib import Path

from data_pipelines import annotations
from data_pipelines.records import Record, by_split, most_objects
from data_pipelines.referring import FAMILIES, write_pictures, write_records
from instancevg_jax.errors import InputError, run_command


def prepare(
    family: str,
    annotation_files: list[Path],
    images: Path,
    data_dir: Path,
    num_workers: int = 4,
    overwrite: bool = False,
) -> list[Record]:
    """Read all annotation files and write them as the family's data set; returns the records.

    Raises InputError for what `annotations.read`, `write_pictures` and `write_records` raise it for.
    """
    if not images.is_dir():
        raise InputError(f"{images}: no such folder; expected the pictures")
    records = [record for path in annotation_files for record in annotations.read(path)]
    if overwrite:
        for name in ("pictures", "referring"):
            shutil.rmtree(data_dir / name / family, ignore_errors=True)
    names = list(dict.fromkeys(record.picture for record in records))
    pictures = write_pictures(family, data_dir, names, images, num_workers)
    write_records(family, data_dir, records, pictures)
    return records


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
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    args = parser.parse_args()
    records = prepare(args.family, args.annotations, args.images, args.data_dir, args.workers, args.overwrite)
    for split, found in by_split(records).items():
        print(f"{split}: {len(found)} records, at most {most_objects(found, 'strict')} objects in one")


if __name__ == "__main__":
    run_command(main)
