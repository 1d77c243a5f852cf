"""Two TFDS builders, `Referring` for the records and `Pictures` for their pictures, each with one config per family.

TensorFlow is not needed: the files are array_records, read by `as_data_source`. Each picture is stored once, as the bytes of
its file, and records refer to it by index. Polygons are stored as run lengths, so that they are rasterized only once. Records
keep the order of the annotation file. A "+" in a split's name becomes "plus", because TFDS reads it as a sum.
"""

import contextlib
import io
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from data_pipelines import masks
from data_pipelines.checking.conventions import doubt_of
from data_pipelines.checking.frames import frame_of
from data_pipelines.checking.pictures import PictureInfo
from data_pipelines.records import (
    FAMILIES,
    RLE,
    Box,
    Instance,
    Record,
    Segmentation,
    by_split,
    is_partial,
    is_training,
    select,
    split_names,
    units,
)
from instancevg_jax.errors import InputError, first_line
from instancevg_jax.inputs.pictures import decode_picture, picture_size, read_file

PICTURES_SPLIT = "pictures"
_NULL, _EMPTY = "", "-"  # stored for null and for an empty segmentation; no run length looks like them
_CHUNK = 64  # pictures in flight for each worker
_CONFIGS = [tfds.core.BuilderConfig(name=name, description=text) for name, text in FAMILIES.items()]


class Pictures(tfds.core.GeneratorBasedBuilder):
    """Every picture of a family once. Made by `write_pictures`."""

    name = "pictures"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = _CONFIGS
    pkg_dir_path = tfds.core.Path(__file__).parent
    names: Sequence[str] = ()
    folder = Path()
    num_workers = 1
    digest = ""

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"file_name": tfds.features.Text(), "bytes": tfds.features.Text()}
        return _dataset_info(self, features, {"file_names": [], "sizes": [], "orientations": [], "digest": ""})

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        return {PICTURES_SPLIT: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict]]:
        metadata = self.info.metadata
        assert metadata is not None
        metadata["digest"] = self.digest
        bar = tqdm(total=len(self.names), desc="pictures", unit=" pictures", mininterval=0.5)
        with ThreadPoolExecutor(self.num_workers) as pool, bar:
            for start in range(0, len(self.names), step := _CHUNK * self.num_workers):
                chunk = self.names[start : start + step]
                for i, (name, (data, picture)) in enumerate(
                    zip(chunk, pool.map(self._read, chunk), strict=True), start
                ):
                    metadata["file_names"].append(name)
                    metadata["sizes"].append(picture.size)
                    metadata["orientations"].append(picture.orientation)
                    bar.update()
                    yield i, {"file_name": name, "bytes": data}

    def _read(self, name: str) -> tuple[bytes, PictureInfo]:
        data = read_file(self.folder / name)
        height, width = decode_picture(data, str(self.folder / name)).shape[:2]
        return data, PictureInfo((height, width), orientation=picture_size(self.folder / name)[2])


class Referring(tfds.core.GeneratorBasedBuilder):
    """The records of a family. Made by `write_records`."""

    name = "referring"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = _CONFIGS
    pkg_dir_path = tfds.core.Path(__file__).parent
    splits: dict[str, list[Record]] = {}  # noqa: RUF012
    pictures: dict[str, tuple[int, PictureInfo]] = {}  # noqa: RUF012  file name -> index, what it is
    digests: dict[str, str] = {}  # noqa: RUF012  of the records, and of the pictures they point to

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        features = {
            "id": text,
            "picture": np.int64,  # index into Pictures
            "file_name": text,
            "width": np.int64,
            "height": np.int64,
            "expressions": tfds.features.Sequence(text),
            "group": text,
            "boxes": tfds.features.Sequence(text),  # "x1 y1 x2 y2", pixels; text, because TFDS would round to float32
            "masks": tfds.features.Sequence(text),
            "object_ids": tfds.features.Sequence(text),
        }
        return _dataset_info(
            self, features, {"units": {}, "partial": {}, "ungrouped": {}, "with_objects": {}, "digests": {}}
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        metadata = self.info.metadata
        assert metadata is not None
        metadata["units"] = {s: [u.start for u in units(r)] for s, r in self.splits.items() if is_training(s)}
        metadata["partial"] = {s: _first(r for r in found if is_partial(r)) for s, found in self.splits.items()}
        metadata["ungrouped"] = {s: _first(r for r in found if not r.group) for s, found in self.splits.items()}
        metadata["with_objects"] = {s: _with_objects(found) for s, found in self.splits.items()}
        metadata["digests"] = self.digests
        return {split: self._generate_examples(records) for split, records in self.splits.items()}

    def _generate_examples(self, records: Sequence[Record]) -> Iterator[tuple[int, dict]]:
        for i, record in enumerate(tqdm(records, desc="records", unit=" records", mininterval=0.5)):
            index, picture = self.pictures[record.picture]
            assert picture.size
            try:
                _check_frame(record, picture)
                yield i, {"picture": index, **to_example(record, *picture.size)}
            except InputError as error:
                raise InputError(f"record {record.id} ({record.picture}): {error}") from error


def write_pictures(
    family: str, data_dir: Path, names: Sequence[str], folder: Path, digest: str, num_workers: int
) -> Pictures:
    """Write the named pictures of `folder`, unless an earlier call has written those with the same `pictures_digest`.

    Atomic: a temporary folder is renamed at the end. Raises InputError for a damaged picture, and where nothing can be written.
    """
    builder = Pictures(config=family, data_dir=str(data_dir), file_format="array_record")
    made = builder.info.metadata or {}
    if Path(builder.data_path).is_dir() and not (made.get("digest") == digest and "orientations" in made):
        shutil.rmtree(builder.data_path)
        builder = Pictures(config=family, data_dir=str(data_dir), file_format="array_record")
    builder.names, builder.folder, builder.num_workers, builder.digest = names, folder, num_workers, digest
    _write(builder)
    return builder


def write_records(family: str, data_dir: Path, records: Sequence[Record], digest: str, pictures: Pictures) -> Referring:
    """Write the records, whose pictures `write_pictures` has written, in place of any that are there. Atomic.

    Raises InputError where a picture's size is not the stated one, annotations are not of the picture as it is shown, a mask
    cannot be drawn, or nothing can be written.
    """
    metadata = pictures.info.metadata or {}
    stored = zip(metadata["file_names"], metadata["sizes"], metadata["orientations"], strict=True)
    shutil.rmtree(data_dir / Referring.name / family, ignore_errors=True)
    builder = Referring(config=family, data_dir=str(data_dir), file_format="array_record")
    builder.splits = {name: found for name, found in zip(split_names(records), by_split(records).values(), strict=True)}
    builder.pictures = {
        name: (i, PictureInfo((height, width), orientation=turned))
        for i, (name, (height, width), turned) in enumerate(stored)
    }
    builder.digests = {"records": digest, "pictures": metadata["digest"]}
    if doubt := doubt_of(records, {name: picture for name, (_, picture) in builder.pictures.items()}):
        print(f"warning: boxes without a mask look like {doubt}; data_pipelines.check lists them", file=sys.stderr)
    _write(builder)
    return builder


def _write(builder: tfds.core.DatasetBuilder) -> None:
    """Write the data set without TFDS's messages, which mention downloads."""
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
    except InputError:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # the last two are array_record's; TFDS adds to the message
        raise InputError(f"{builder.data_path}: cannot be written ({first_line(error)})") from error


def _check_frame(record: Record, picture: PictureInfo) -> None:
    if picture.orientation >= 5 and (frame := frame_of(record, picture)) != "shown":
        assert picture.size
        height, width = picture.size
        cause = "are of the picture before" if frame == "stored" else "may be of the picture before"
        raise InputError(
            f"the annotations {cause} EXIF orientation {picture.orientation} rotates it to {width} x {height}; "
            "data_pipelines.check --fix OUT.jsonl rotates them where a stated width and height tell"
        )


def _with_objects(records: Sequence[Record]) -> dict[str, int]:
    """How many records have an object under each protocol."""
    return {p: sum(bool(select(r, p).objects) for r in records) for p in ("official", "strict")}


def to_example(record: Record, height: int, width: int) -> dict[str, Any]:
    """A record as `Referring` stores it, without `picture`; `height` and `width` are the picture's own."""
    if (record.height, record.width) not in ((height, width), (0, 0)):
        stated = f"{record.width} x {record.height}"
        raise InputError(f"the annotations state {stated} pixels; the picture has {width} x {height}")
    return {
        "id": record.id,
        "file_name": record.picture,
        "width": width,
        "height": height,
        "expressions": list(record.expressions),
        "group": record.group,
        "boxes": [" ".join(map(repr, i.box)) if i.box else _NULL for i in record.instances],
        "masks": [_mask_text(i.segmentation, height, width) for i in record.instances],
        "object_ids": [i.id for i in record.instances],
    }


def from_example(example: dict[str, Any], split: str) -> Record:
    """The inverse of `to_example`; polygons have become run lengths."""
    height, width = int(example["height"]), int(example["width"])
    objects = zip(example["boxes"], example["masks"], example["object_ids"], strict=True)
    return Record(
        example["id"].decode(),
        example["file_name"].decode(),
        width,
        height,
        tuple(e.decode() for e in example["expressions"]),
        tuple(
            Instance(_box(box.decode()), _segmentation(mask.decode(), height, width), name.decode())
            for box, mask, name in objects
        ),
        split,
        example["group"].decode(),
    )


def _first(records: Iterator[Record]) -> str:
    return next((f"{record.id} ({record.picture})" for record in records), "")


def _box(text: str) -> Box | None:
    if text == _NULL:
        return None
    x1, y1, x2, y2 = map(float, text.split())
    return x1, y1, x2, y2


def _mask_text(segmentation: Segmentation | None, height: int, width: int) -> str:
    if segmentation is None:
        return _NULL
    return masks.to_rle(segmentation, height, width).counts if segmentation else _EMPTY


def _segmentation(text: str, height: int, width: int) -> Segmentation | None:
    if text == _NULL:
        return None
    return [] if text == _EMPTY else RLE(height, width, text)


def _dataset_info(
    builder: tfds.core.DatasetBuilder, features: dict[str, Any], metadata: dict[str, Any]
) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
        builder=builder,
        features=tfds.features.FeaturesDict(features),
        metadata=tfds.core.MetadataDict(metadata),
        disable_shuffling=True,
    )
