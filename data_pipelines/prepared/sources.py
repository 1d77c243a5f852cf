"""Sources of items for the loader: annotations with a folder of pictures, or a prepared data set."""

import bisect
import contextlib
import functools
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from data_pipelines.prepared.builders import PICTURES_SPLIT, from_example
from data_pipelines.records import FAMILIES, Record, split_name, units
from data_pipelines.transforms import Alternatives
from instancevg_jax.errors import InputError, first_line
from instancevg_jax.inputs.pictures import read_file

_DESCRIPTIONS = ("dataset_info.json", "features.json", "metadata.json")  # of a data set, besides its shards


class Folder:
    """Records as read from an annotation file, and the folder of their pictures. Nothing has to be prepared."""

    def __init__(self, records: Sequence[Record], images: str | Path) -> None:
        """`images` is the folder that the records' file names are relative to."""
        self._records, self._images = list(records), Path(images)
        self._units = units(self._records)

    def __len__(self) -> int:
        """Items of an epoch: records, or groups of alternatives in training splits."""
        return len(self._units)

    def __getitem__(self, index: int) -> Alternatives:
        """The item `index`, for `transforms.Transform`."""
        return Alternatives(self.load, self._units[index])

    def load(self, position: int) -> tuple[Record, Callable[[], bytes]]:
        """A record by its position, and a function that reads the file of its picture."""
        record = self._records[position]
        return record, functools.partial(read_file, self._images / record.picture)


class Prepared:
    """A split of a data set that `data_pipelines.prepare` has written. Picklable."""

    def __init__(self, data_dir: str | Path, family: str, split: str) -> None:
        """Raises InputError where the data set, the split or a file is missing or damaged, or the pictures are of other records."""
        builder, pictures = (_open(Path(data_dir), name, family) for name in ("referring", "pictures"))
        self.split = split_name(split)
        if self.split not in builder.info.splits:
            raise InputError(
                f"{builder.data_path}: no split {split!r}; expected one of {', '.join(builder.info.splits)}"
            )
        self._records, self._pictures = _Shards(builder, self.split), _Shards(pictures, PICTURES_SPLIT)
        with _damage_in(Path(builder.data_path) / "metadata.json"):
            metadata = builder.info.metadata
            # id and picture of the first record for which this is true, or ""
            self.partial: str = metadata["partial"][self.split]  # has an object with only a box or only a mask
            self.ungrouped: str = metadata["ungrouped"][self.split]  # is in no group
            stored_for: str = metadata["digests"]["pictures"]
            starts = metadata["units"].get(self.split) or range(len(self._records))
            self._units = [range(a, b) for a, b in zip(starts, [*starts[1:], len(self._records)], strict=True)]
            # protocol -> how many records have an object; empty for a data set of an earlier version
            self.with_objects: dict[str, int] = metadata.get("with_objects", {}).get(self.split, {})
        with _damage_in(Path(pictures.data_path) / "metadata.json"):
            self.digest: str = pictures.info.metadata["digest"]  # of the pictures
        if stored_for != self.digest:
            raise InputError(
                f"{builder.data_path}: {pictures.data_path} are not its pictures; prepare with --overwrite"
            )

    def __len__(self) -> int:
        """Items of an epoch: records, or groups of alternatives in training splits."""
        return len(self._units)

    def __getitem__(self, index: int) -> Alternatives:
        """The item `index`, for `transforms.Transform`."""
        return Alternatives(self.load, self._units[index])

    def record(self, position: int) -> Record:
        """A record by its position in the split, without its picture."""
        return self._records.read(position, lambda example: from_example(example, self.split))

    def load(self, position: int) -> tuple[Record, Callable[[], bytes]]:
        """A record by its position in the split, and a function that reads the file of its picture."""
        record, picture = self._records.read(
            position, lambda example: (from_example(example, self.split), int(example["picture"]))
        )
        return record, functools.partial(self._picture, picture)

    def _picture(self, index: int) -> bytes:
        return self._pictures.read(index, _bytes_of)


def _bytes_of(example: dict[str, Any]) -> bytes:
    if not isinstance(example["bytes"], bytes):  # array_record reads examples of a truncated file as empty ones
        raise ValueError("the example is empty")
    return example["bytes"]


class _Shards:
    """The examples of one split. Errors name the file that contains the example."""

    def __init__(self, builder: Any, split: str) -> None:
        info = builder.info.splits[split]
        self._files = [Path(str(path)) for path in info.filepaths]
        self._ends = list(itertools.accumulate(info.shard_lengths))
        for path in self._files:
            with _damage_in(path):
                if path.stat().st_size == 0:
                    raise ValueError("the file is empty")
        with _damage_in(*self._files):
            self._examples = builder.as_data_source(split=split)
            if len(self._examples) != self._ends[-1]:
                raise ValueError(f"{len(self._examples)} examples, expected {self._ends[-1]}")

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, position: int, parse: Callable[[dict[str, Any]], Any]) -> Any:
        """What `parse` makes of the example at `position`."""
        with _damage_in(self._files[bisect.bisect_right(self._ends, position)]):
            return parse(self._examples[position])


def stored_digests(data_dir: Path, family: str) -> dict[str, str]:
    """Digests of the records of a prepared data set and of the pictures next to them; {} where one is missing or damaged."""
    try:
        records, pictures = ((_open(data_dir, name, family).info.metadata or {}) for name in ("referring", "pictures"))
        return {"records": records["digests"]["records"], "pictures": pictures["digest"]}
    except (InputError, KeyError, TypeError):
        return {}


def _open(data_dir: Path, name: str, family: str) -> Any:  # a DatasetBuilder; its annotations hide arguments
    if family not in FAMILIES:
        raise InputError(f"there is no family {family!r} of data sets; expected one of {', '.join(FAMILIES)}")
    folder = data_dir / name / family / "1.0.0"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; write it with python -m data_pipelines.prepare {family}")
    for file in _DESCRIPTIONS:
        with _damage_in(folder / file):
            if not isinstance(json.loads((folder / file).read_bytes()), dict):
                raise ValueError("not an object")
    with _damage_in(*(folder / file for file in _DESCRIPTIONS)):
        return tfds.builder_from_directory(str(folder))


@contextlib.contextmanager
def _damage_in(*files: Path) -> Iterator[None]:
    """Context for reading files: any error of TFDS, array_record, protobuf or json becomes an InputError naming them."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        names = ", ".join(map(str, files))
        cause = "missing" if isinstance(error, FileNotFoundError) else f"damaged ({first_line(error)})"
        raise InputError(f"{names}: {cause}; write it again with data_pipelines.prepare --overwrite") from error
