"""prepare writes what Prepared reads back: every record, and every picture once, without TensorFlow."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipelines import masks
from data_pipelines.prepare import prepare
from data_pipelines.prepared.folders import side_folder
from data_pipelines.prepared.sources import Folder, Prepared
from data_pipelines.records import Record, split_name
from data_pipelines.transforms import Transform
from instancevg_jax.errors import InputError
from instancevg_jax.inputs.tokenizer import Tokenizer
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
    with pytest.raises(InputError, match="custom: holds other records or pictures than these; use --overwrite"):
        prepare("custom", [file], images, tmp_path / "out")
    prepare("custom", [file], images, tmp_path / "out", overwrite=True)
    assert len(Prepared(tmp_path / "out", "custom", "val")) == 1
    assert [path.name for path in (tmp_path / "out/.preparing").iterdir()] == ["custom.lock"]


@pytest.mark.parametrize("change", ["sentence", "objects", "count", "order", "picture"])
def test_whatever_changes_is_noticed(tmp_path: Path, images: Path, file: Path, change: str):
    prepare("custom", [file], images, tmp_path / "out")
    content = json.loads(file.read_text())
    match change:
        case "sentence":
            content["train"][1][0]["expressions"]["raw"] = "a dag"
        case "objects":
            content["train"][1][0]["annotations"][0]["bbox"][0] += 1
        case "count":
            content["train"].pop()
        case "order":
            content["train"].reverse()
        case "picture":
            (images / "2.jpg").write_bytes((images / "2.jpg").read_bytes() + b"\0")
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match="use --overwrite"):
        prepare("custom", [file], images, tmp_path / "out")
    records = prepare("custom", [file], images, tmp_path / "out", overwrite=True)
    train = Prepared(tmp_path / "out", "custom", "train")
    for i, record in enumerate(r for r in records if r.split == "train"):
        read, data = train.load(i)
        assert (read, data()) == (drawn(record), (images / record.picture).read_bytes())


def test_records_beside_other_pictures_are_refused(tmp_path: Path, images: Path, file: Path):
    prepare("custom", [file], images, tmp_path / "out")
    content = json.loads(file.read_text())
    content["train"].reverse()
    file.write_text(json.dumps(content))
    prepare("custom", [file], images, tmp_path / "other")
    shutil.rmtree(tmp_path / "out/pictures")
    shutil.copytree(tmp_path / "other/pictures", tmp_path / "out/pictures")
    with pytest.raises(InputError, match=r"are not its pictures; prepare with --overwrite"):
        Prepared(tmp_path / "out", "custom", "train")


KILLED = """
import os, signal, sys
from pathlib import Path
from data_pipelines import prepare
from data_pipelines.prepared import builders
place, calls, (annotations, images, out) = sys.argv[1], int(sys.argv[2]), map(Path, sys.argv[3:])
module, name = {"pictures": (builders, "decode_picture"), "records": (builders, "to_example"), "swap": (Path, "rename")}[place]
whole, left = getattr(module, name), [calls]
def dying(*arguments):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*arguments)
setattr(module, name, dying)
prepare.prepare("custom", [annotations], images, out, num_workers=1, overwrite=True)
"""


@pytest.mark.parametrize(("place", "calls"), [("pictures", 1), ("records", 2), *(("swap", k) for k in range(4))])
def test_a_killed_run_leaves_the_old_or_nothing_and_the_next_makes_it_whole(
    tmp_path: Path, images: Path, file: Path, place: str, calls: int
):
    out, clean = tmp_path / "out", tmp_path / "clean"
    picture(images, "3.jpg", 30)
    old = tmp_path / "old.json"
    old.write_text(json.dumps({"train": [generalized(i, "old", annotation()) for i in (3, 2)]}))
    prepare("custom", [old], images, out)
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", KILLED, place, str(calls), str(file), str(images), str(out)]
    assert subprocess.run(command, cwd=root, check=False, capture_output=True).returncode == -signal.SIGKILL
    if place == "swap" and calls:
        with pytest.raises(InputError, match="no such folder; write it with"):
            Prepared(out, "custom", "train")
    else:
        assert [Prepared(out, "custom", "train").record(i).expressions for i in range(2)] == [("old",)] * 2
    prepare("custom", [file], images, out, overwrite=True)
    prepare("custom", [file], images, clean)
    assert contents(out) == contents(clean)


def contents(folder: Path) -> tuple[set[str], list[tuple[Record, bytes]]]:
    """Names of all files, and what is read; the files' own bytes are not the same from run to run."""
    sources = [Prepared(folder, "custom", split) for split in ("train", "val_rrefcoco+")]
    loaded = [source.load(i) for source, count in zip(sources, (3, 1), strict=True) for i in range(count)]
    names = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return names, [(record, read()) for record, read in loaded]


def test_pictures_of_a_killed_run_are_taken_up(tmp_path: Path, images: Path, file: Path):
    prepare("custom", [file], images, tmp_path / "out")
    shutil.rmtree(tmp_path / "out/referring")
    stored = next((tmp_path / "out/pictures/custom/1.0.0").glob("*.array_record-*"))
    written = stored.stat().st_mtime_ns
    prepare("custom", [file], images, tmp_path / "out")
    assert stored.stat().st_mtime_ns == written
    assert len(Prepared(tmp_path / "out", "custom", "train")) == 2


def test_two_at_once_are_refused(tmp_path: Path, images: Path, file: Path):
    with side_folder(tmp_path / "out", "custom"), pytest.raises(InputError, match="another prepare is writing there"):
        prepare("custom", [file], images, tmp_path / "out")


def test_settings_are_checked(tmp_path: Path, images: Path, file: Path):
    with pytest.raises(InputError, match="--workers is 0; expected at least 1"):
        prepare("custom", [file], images, tmp_path / "out", num_workers=0)
    with pytest.raises(InputError, match=r"instance.json: is a file; expected a folder to write to"):
        prepare("custom", [file], images, file)
    with pytest.raises(
        InputError, match=r"instance.json/out: cannot be written \(Not a directory\); expected a folder"
    ):
        prepare("custom", [file], images, file / "out")
    file.write_text('{"train": []}')
    with pytest.raises(InputError, match=r"instance.json: the file holds no record; expected at least one"):
        prepare("custom", [file], images, tmp_path / "out")
    file.write_text(json.dumps({name: [generalized(2, "a dog", annotation())] for name in ("val+", "valplus")}))
    with pytest.raises(InputError, match=r"splits 'val\+' and 'valplus' would both be stored as 'valplus'"):
        prepare("custom", [file], images, tmp_path / "out")


def test_nothing_is_left_of_a_failure_and_the_next_call_goes_on(tmp_path: Path, images: Path, file: Path):
    content = json.loads(file.read_text())
    content["train"][1][0]["width"] += 1
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"record train\[1\]\[0\] \(2.jpg\): the annotations state 61 x 40 pixels"):
        prepare("custom", [bad], images, tmp_path / "out")
    with pytest.raises(InputError, match=r"referring/custom/1.0.0: no such folder; write it with"):
        Prepared(tmp_path / "out", "custom", "train")
    written = [path.stat().st_mtime_ns for path in tmp_path.rglob("pictures-*.array_record-*")]
    assert len(written) == 1
    prepare("custom", [file], images, tmp_path / "out")
    assert [path.stat().st_mtime_ns for path in tmp_path.rglob("pictures-*.array_record-*")] == written
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


@pytest.mark.parametrize(
    ("box", "cause"),
    [
        ([0.1, 0.2, 0.5, 0.75], "normalized to 0..1, such as in record 1"),
        ([20, 20, 9, 9], "[x, y, width, height]"),
        ([10, 20, 90, 95], "normalized to 0..100"),
        ([1, 2, 30, 30], ""),
    ],
)
def test_boxes_in_another_convention_are_warned_of(tmp_path: Path, images: Path, capsys, box: list, cause: str):
    line = {"id": 1, "image": "1.jpg", "expressions": "a dog", "objects": [{"box": box}]}
    (tmp_path / "own.jsonl").write_text(json.dumps(line))
    prepare("custom", [tmp_path / "own.jsonl"], images, tmp_path / "out")
    warnings = [text for text in capsys.readouterr().err.splitlines() if text.startswith("warning: ")]
    assert warnings == (
        [f"warning: boxes without a mask look like {cause}; data_pipelines.check lists them"] * bool(cause)
    )


def test_tensorflow_stays_out():
    code = "import sys, data_pipelines.prepared.sources; sys.exit('tensorflow' in sys.modules)"
    root = Path(__file__).parents[3]
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
