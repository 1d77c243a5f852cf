"""Where the loader's items come from: annotations and a folder of pictures, or a prepared data set."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from data_pipelines.prepared.builders import FAMILIES, PICTURES_SPLIT, from_example, split_name
from data_pipelines.records import Record, units
from data_pipelines.transforms import Choice
from instancevg_jax.errors import InputError
from instancevg_jax.inputs.pictures import read_file


class Folder:
    """Records as read from an annotation file, and the folder of their pictures. Nothing has to be prepared."""

    def __init__(self, records: Sequence[Record], images: str | Path) -> None:
        """`images` is the folder that the records' file names are relative to."""
        self._records, self._images = list(records), Path(images)
        self._units = units(self._records)

    def __len__(self) -> int:
        """Items of an epoch: records, or groups of alternatives in training splits."""
        return len(self._units)

    def __getitem__(self, index: int) -> Choice:
        """The item `index`, for `transforms.Transform`."""
        return Choice(self.load, self._units[index])

    def load(self, position: int) -> tuple[Record, Callable[[], bytes]]:
        """A record by its position among the records, and what reads its picture's file."""
        record = self._records[position]
        return record, functools.partial(read_file, self._images / record.picture)


class Prepared:
    """A split of a data set that `data_pipelines.prepare` has written. Picklable."""

    def __init__(self, data_dir: str | Path, family: str, split: str) -> None:
        """Raises InputError where the data set or the split is not there, or the pictures are not those of the records."""
        builder = _open(Path(data_dir), "referring", family)
        self.split = split_name(split)
        if self.split not in builder.info.splits:
            raise InputError(
                f"{builder.data_path}: no split {split!r}; expected one of {', '.join(builder.info.splits)}"
            )
        pictures, metadata = _open(Path(data_dir), "pictures", family), builder.info.metadata or {}
        self.digest: str = (pictures.info.metadata or {}).get("digest", "")  # of the pictures
        if metadata.get("digests", {}).get("pictures") != self.digest:
            raise InputError(
                f"{builder.data_path}: {pictures.data_path} are not its pictures; prepare with --overwrite"
            )
        self._records = builder.as_data_source(split=self.split)
        self._pictures = pictures.as_data_source(split=PICTURES_SPLIT)
        # the first record of which this is true, or ""
        self.partial: str = metadata["partial"][self.split]  # has an object with only a box or only a mask
        self.ungrouped: str = metadata["ungrouped"][self.split]  # is in no group
        starts = metadata["units"].get(self.split) or range(len(self._records))
        self._units = [range(a, b) for a, b in zip(starts, [*starts[1:], len(self._records)], strict=True)]

    def __len__(self) -> int:
        """Items of an epoch: records, or groups of alternatives in training splits."""
        return len(self._units)

    def __getitem__(self, index: int) -> Choice:
        """The item `index`, for `transforms.Transform`."""
        return Choice(self.load, self._units[index])

    def record(self, position: int) -> Record:
        """A record by its position in the split, without its picture."""
        return from_example(self._records[position], self.split)

    def load(self, position: int) -> tuple[Record, Callable[[], bytes]]:
        """A record by its position in the split, and what reads its picture's file."""
        example = self._records[position]
        return from_example(example, self.split), functools.partial(self._picture, example["picture"])

    def _picture(self, index: int) -> bytes:
        return self._pictures[index]["bytes"]


def stored_digests(data_dir: Path, family: str) -> dict[str, str]:
    """Of the records of a prepared data set and of the pictures beside them; empty where one of the two is missing."""
    if not all(_folder(data_dir, name, family).is_dir() for name in ("referring", "pictures")):
        return {}
    records, pictures = ((_open(data_dir, name, family).info.metadata or {}) for name in ("referring", "pictures"))
    return {"records": records.get("digests", {}).get("records", ""), "pictures": pictures.get("digest", "")}


def _folder(data_dir: Path, name: str, family: str) -> Path:
    return data_dir / name / family / "1.0.0"


def _open(data_dir: Path, name: str, family: str) -> Any:  # a DatasetBuilder; its annotations hide arguments
    if family not in FAMILIES:
        raise InputError(f"there is no family {family!r} of data sets; expected one of {', '.join(FAMILIES)}")
    folder = _folder(data_dir, name, family)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; write it with python -m data_pipelines.prepare {family}")
    return tfds.builder_from_directory(str(folder))
