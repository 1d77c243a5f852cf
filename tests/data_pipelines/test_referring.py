"""prepare writes what Prepared reads back: every record, and every picture once, without TensorFlow."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipelines import masks
from data_pipelines.prepare import prepare
from data_pipelines.records import Record
from data_pipelines.referring import split_name
from data_pipelines.sources import Folder, Prepared
from data_pipelines.transforms import Transform
from instancevg_jax.errors import InputError
from instancevg_jax.tokenizer import Tokenizer
from tests import oracle
from tests.data_pipelines.make import NULL, annotation, generalized, picture


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for shade, name in ((0, "1.jpg"), (90, "2.jpg")):
        picture(tmp_path / "images", name, shade)
    return tmp_path / "images"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    first = generalized(1, ["red dog", "it"], annotation(), NULL, annotation(30, 15), annotation(segmentation=[]))
    content = {
        "train": [[first, generalized(1, "a cat", NULL)], [generalized(2, "a dög", annotation())]],
        "val_rrefcoco+": [[generalized(1, "left", annotation(bbox=[1.1, 2, 3.7, 4.5]))]],
    }
    path = tmp_path / "instance.json"
    path.write_text(json.dumps(content))
    return path


def drawn(record: Record) -> Record:
    """The record as it is stored: polygons as run lengths."""
    instances = [
        replace(i, segmentation=masks.to_rle(i.segmentation, record.height, record.width)) if i.segmentation else i
        for i in record.instances
    ]
    return replace(record, instances=tuple(instances), split=split_name(record.split))


def test_what_is_written_is_read(tmp_path: Path, images: Path, file: Path):
    records = prepare("rrefcoco", [file], images, tmp_path / "out", num_workers=2)
    train, val = (Prepared(tmp_path / "out", "rrefcoco", split) for split in ("train", "val_rrefcoco+"))
    assert [len(train), len(val)] == [2, 1]
    assert [list(train[i].positions) for i in range(2)] == [[0, 1], [2]]
    read = [train.load(i) for i in range(3)] + [val.load(0)]
    assert [record for record, _ in read] == [drawn(record) for record in records]
    assert [data() for _, data in read] == [(images / r.picture).read_bytes() for r in records]


def test_pictures_are_stored_once(tmp_path: Path, images: Path, file: Path):
    prepare("custom", [file], images, tmp_path / "out")
    builder = tfds.builder_from_directory(str(tmp_path / "out/pictures/custom/1.0.0"))
    assert builder.info.splits["pictures"].num_examples == 2
    assert builder.info.metadata["file_names"] == ["1.jpg", "2.jpg"]


def test_a_second_call_keeps_what_is_there_and_other_pictures_are_refused(tmp_path: Path, images: Path, file: Path):
    prepare("custom", [file], images, tmp_path / "out")
    stored = next((tmp_path / "out/pictures/custom/1.0.0").glob("*.array_record-*"))
    written = stored.stat().st_mtime_ns
    prepare("custom", [file], images, tmp_path / "out")
    assert stored.stat().st_mtime_ns == written
    file.write_text(json.dumps({"val": [generalized(2, "a dog", annotation())]}))
    with pytest.raises(InputError, match="holds other pictures than these annotations name; use --overwrite"):
        prepare("custom", [file], images, tmp_path / "out")
    prepare("custom", [file], images, tmp_path / "out", overwrite=True)
    assert len(Prepared(tmp_path / "out", "custom", "val")) == 1


def test_nothing_is_left_of_a_failure_and_the_next_call_goes_on(tmp_path: Path, images: Path, file: Path):
    content = json.loads(file.read_text())
    content["train"][1][0]["width"] += 1
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"record train\[1\]\[0\] \(2.jpg\): the annotations state 61 x 40 pixels"):
        prepare("custom", [bad], images, tmp_path / "out")
    with pytest.raises(InputError, match=r"referring/custom/1.0.0: no such folder; write it with"):
        Prepared(tmp_path / "out", "custom", "train")
    stored = next((tmp_path / "out/pictures/custom/1.0.0").glob("*.array_record-*"))
    written = stored.stat().st_mtime_ns
    prepare("custom", [file], images, tmp_path / "out")
    assert stored.stat().st_mtime_ns == written
    assert len(Prepared(tmp_path / "out", "custom", "train")) == 2


def test_a_missing_picture_is_an_error(tmp_path: Path, images: Path, file: Path):
    (images / "2.jpg").unlink()
    with pytest.raises(InputError, match=r"2.jpg: no such file, but the annotations name it"):
        prepare("custom", [file], images, tmp_path / "out")


def test_names_are_checked(tmp_path: Path, images: Path, file: Path):
    prepare("custom", [file], images, tmp_path / "out")
    with pytest.raises(InputError, match="no split 'test'; expected one of train, val_rrefcocoplus"):
        Prepared(tmp_path / "out", "custom", "test")
    with pytest.raises(InputError, match="no family 'coco' of data sets; expected one of refcoco, grefcoco"):
        Prepared(tmp_path / "out", "coco", "train")
    file.write_text(json.dumps({"my val": [generalized(2, "a dog", annotation())]}))
    with pytest.raises(InputError, match="a split is called 'my val'"):
        prepare("custom", [file], images, tmp_path / "out2")


def test_tensorflow_stays_out():
    code = "import sys, data_pipelines.prepare, data_pipelines.sources; sys.exit('tensorflow' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


@pytest.mark.parametrize(
    ("family", "name", "split"),
    [
        ("refcoco", "mixed-seg/instances_nogoogle_withid.json", "testA_refcoco_unc"),
        ("grefcoco", "grefs/instance.json", "val"),
        ("refzom", "ref-zom/instance.json", "test"),
        ("rrefcoco", "rrefcoco/instance.json", "val_rrefcoco+"),
    ],
)
def test_prepared_and_folder_give_equal_examples_of_the_real_sample(tmp_path: Path, family: str, name: str, split: str):
    root = oracle.data("refcoco_real")
    images = root / "images/mscoco/train2014"
    records = prepare(family, [root / "annotations" / name], images, tmp_path, num_workers=2)
    prepared = Prepared(tmp_path, family, split)
    folder = Folder([record for record in records if record.split == split], images)
    assert len(prepared) == len(folder)
    tokenizer = Tokenizer.from_bytes(oracle.fixture("f8_tokenizer")["spm_model_bytes"].tobytes(), "fixture")
    transform = Transform(tokenizer, 64, 64, 50, 9)
    for i in range(0, len(folder), max(1, len(folder) // 5)):
        examples = [transform(source[i], np.random.default_rng(0)) for source in (prepared, folder)]
        ours, theirs = (transform.stack([example]) for example in examples)
        np.testing.assert_array_equal(ours.images, theirs.images)
        np.testing.assert_array_equal(ours.token_ids, theirs.token_ids)
        np.testing.assert_array_equal(ours.targets.boxes, theirs.targets.boxes)
        np.testing.assert_array_equal(ours.targets.masks, theirs.targets.masks)
        np.testing.assert_array_equal(ours.targets.mask, theirs.targets.mask)
