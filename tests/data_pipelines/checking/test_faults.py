"""Each planted fault is found, and only it; --fix leaves files in which nothing is found."""

import json
import re
import shutil
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pytest
from PIL import Image

from data_pipelines import masks
from data_pipelines.annotations import reading
from data_pipelines.checking.faults import KINDS, Rules, is_note
from data_pipelines.checking.tables import counts_table, faults_table, format_table
from instancevg_jax.errors import InputError
from tests import oracle
from tests.data_pipelines.checking.run import Check, own, write_lines
from tests.data_pipelines.make import HEIGHT, NULL, POLYGON, WIDTH, annotation, generalized, picture

MAX_TOKENS = 20
BOW_TIE = [[10, 10, 30, 30, 30, 10, 10, 30]]
OTHER_SIZE = {"size": [HEIGHT + 1, WIDTH], "counts": [0, 100, (HEIGHT + 1) * WIDTH - 100]}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "fixture.spm"
    path.write_bytes(oracle.fixture("f8_tokenizer")["spm_model_bytes"].tobytes())
    return path


def write(tmp_path: Path, content: dict[str, Any]) -> Path:
    path = tmp_path / "instance.json"
    path.write_text(json.dumps(content))
    (tmp_path / "instance_index.json").write_text('{"val": [[0, 1]]}')
    return path


def sound() -> dict[str, list]:
    """A file in which nothing is wrong."""
    train = [generalized(1, "a red dog", annotation(), annotation(30, 15)), generalized(2, "a cat", NULL)]
    return {"train": train, "val": [[generalized(3, "the man on the left", annotation())]]}


def exif(path: Path, orientation: int) -> None:
    """Store an EXIF orientation in a picture; its pixels stay as they are."""
    with Image.open(path) as image:
        tags = image.getexif()
        tags[274] = orientation
        image.save(path, exif=tags)


def plant(kind: str, content: dict[str, list], images: Path) -> None:
    first, second = content["train"]
    target = first["annotations"][0]
    match kind:
        case "unreadable record":
            first["annotations"].append(3)
        case "read with a correction":
            first["file_name"] = "1.JPG"
        case "split that cannot be stored":
            content["val-1"] = [generalized(3, "a man", annotation())]
        case "annotated before EXIF rotation":
            exif(images / "1.jpg", 6)
        case "EXIF rotation and no size stated":
            exif(images / "1.jpg", 8)
            first["width"], first["height"] = None, None
            first["annotations"].pop()
        case "picture mirrored or turned by EXIF":
            exif(images / "1.jpg", 3)
        case "object without box and mask":
            target["bbox"], target["segmentation"] = None, []
        case "box far outside the picture":
            target["bbox"] = [10, 10, 20, 36]
        case "box in another convention":
            target["bbox"] = [0.1, 0.2, 0.5, 0.25]
        case "polygon far outside the picture":
            target["segmentation"] = [[10, 10, 30, 10, 30, 30, 10, 300]]
        case "words unknown to the tokenizer":
            first["expressions"] = {"raw": "the 龍 dog"}
        case "box far from its mask":
            target["bbox"] = [30, 10, 20, 20]
        case "polygon with an odd number of coordinates":
            target["segmentation"] = [[*POLYGON[0], 10]]
        case "more objects than max_targets":
            first["annotations"] += [annotation(12), annotation(14)]
        case "one sentence, different objects":
            content["train"].append(generalized(1, "A red dog", annotation()))
        case "no group":
            content["val"].append([generalized(3, "a man", annotation())])
        case "missing picture":
            (images / "1.jpg").unlink()
        case "corrupt picture":
            (images / "1.jpg").write_bytes((images / "1.jpg").read_bytes()[:300])
        case "size differs from the picture":
            first["width"] += 1
        case "null among objects":
            first["annotations"].insert(0, NULL)
        case "box without mask":
            target["segmentation"] = None
        case "mask without box":
            target["bbox"] = None
        case "empty box":
            target["bbox"] = [10, 10, 0, 20]
        case "box outside the picture":
            target["bbox"] = [10, 10, 20, HEIGHT - 8]
        case "empty polygon":
            target["segmentation"] = [*POLYGON, [1, 1, 5, 5]]
        case "mask cannot be drawn":
            target["segmentation"] = OTHER_SIZE
        case "self-crossing polygon":
            target["segmentation"] = BOW_TIE
        case "empty expression":
            first["expressions"] = {"raw": ["a red dog", " ?! "]}
        case "expression longer than max_tokens":
            first["expressions"] = {"raw": "left " * MAX_TOKENS}
        case "expression with markup":
            first["expressions"] = {"raw": "the &quot;red&quot; dog"}
        case "duplicate id":
            first["expressions"]["sent_id"] = second["expressions"]["sent_id"] = 4
        case "picture in train and in another split":
            second |= {"file_name": "3.jpg"}


LEFT = {
    "split that cannot be stored",
    "more objects than max_targets",
    "no group",
}
ALSO = {  # kinds that come with another one
    "split that cannot be stored": {"no group"},
}


@pytest.mark.parametrize("protocol", ["official", "strict"])
@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind != "box perhaps in another convention"]
)  # test_conventions.py
def test_a_planted_fault_is_found_and_repaired(
    tmp_path: Path, images: Path, tokenizer: Path, check: Check, kind: str, protocol: Literal["official", "strict"]
):
    content = sound()
    plant(kind, content, images)
    path = write(tmp_path, content)
    flags = ["--protocol", protocol, "--max-targets", 3, "--max-tokens", MAX_TOKENS]
    if kind in ("expression longer than max_tokens", "words unknown to the tokenizer"):
        flags += ["--tokenizer", tokenizer]
    found = check(path, images, *flags, family="rrefcoco")
    assert found.kinds - ALSO.get(kind, set()) == {kind}
    note = is_note(kind, Rules(protocol=protocol))
    if kind not in ALSO:
        assert found.status == (0 if note else 1)
        assert re.search(rf"\n{re.escape(kind)} +1 +{'note' if note else 'FAULT'}", found.out)
    shutil.move(tmp_path / "new/fixed.jsonl", tmp_path / "fixed.jsonl")
    again = check(tmp_path / "fixed.jsonl", images, *flags, family="rrefcoco")
    left = {kind} if kind in LEFT or (note and kind != "read with a correction") else set()
    assert again.kinds - ALSO.get(kind, set()) == left


def test_nothing_is_found_in_sound_files(tmp_path: Path, images: Path, check: Check):
    found = check(write(tmp_path, sound()), images, family="rrefcoco")
    assert (found.status, found.listed) == (0, [])


@pytest.mark.parametrize("segmentation", [{"size": [HEIGHT, WIDTH], "counts": c} for c in ("55", "abc")])
def test_runs_that_do_not_fill_the_picture_are_found(
    tmp_path: Path, images: Path, segmentation: dict[str, Any], check: Check
):
    content = {"train": [generalized(1, "a dog", annotation(segmentation=segmentation))]}
    found = check(write(tmp_path, content), images)
    assert [(entry["fault"], entry["value"]) for entry in found.listed] == [
        ("mask cannot be drawn", "the RLE does not fill a mask of 60 x 40")
    ]


def test_folders_may_repeat_names_but_not_cocos(tmp_path: Path, images: Path, check: Check):
    names = ["0001.jpg", "COCO_train2014_000000000009.jpg"]
    entries = [own(f"{s}/{name}", s, box=[1, 1, 30, 30]) | {"split": s} for s in ("train", "val") for name in names]
    for entry in entries:
        picture(images / entry["split"], entry["image"].split("/")[1])
    path = write_lines(tmp_path / "own.jsonl", *entries)
    found = check(path, images)
    shared = [entry for entry in found.listed if entry["level"] == "fault"]
    assert [(entry["fault"], entry["file"]) for entry in shared] == [
        ("picture in train and in another split", "train/COCO_train2014_000000000009.jpg")
    ]
    assert [record.picture for record in found.fixed] == ["train/0001.jpg", *(f"val/{name}" for name in names)]


def test_the_mixture_of_refcoco_shares_pictures_by_design(tmp_path: Path, images: Path, check: Check):
    content = {s: [generalized(1, "a dog", annotation())] for s in ("train", "val_refcoco_unc")}
    found = check(write(tmp_path, content), images, family="refcoco")
    assert found.status == 0
    assert [entry["level"] for entry in found.listed] == ["note"]
    assert len(found.fixed) == 2
    assert check(write(tmp_path, content), images, family="grefcoco").status == 1


def test_lines_of_two_files_are_not_one_id(tmp_path: Path, images: Path, check: Check):
    paths = [write_lines(tmp_path / f"{name}.jsonl", own()) for name in ("a", "b")]
    assert check(paths[0], images, "--annotations", *paths).kinds == set()


def test_splits_of_one_stored_name_are_found(tmp_path: Path, images: Path, check: Check):
    content = {s: [generalized(3, "a man", annotation())] for s in ("val+", "valplus")}
    found = check(write(tmp_path, content), images)
    assert [entry["value"] for entry in found.listed] == ["'valplus' and 'val+' would be stored under the same name"]


def test_the_tables_hold_every_kind_and_split(tmp_path: Path):
    records = reading.read(write(tmp_path, sound()))
    counts = format_table(counts_table("grefcoco", records, "official"))
    assert "16,994 differs" in counts
    assert [line.split()[0] for line in counts.splitlines()[2:]] == ["train", "val"]
    faults = format_table(faults_table([], Rules()))
    assert all(kind in faults for kind in KINDS)
    assert faults.count("needs --tokenizer") == 2


def test_boxes_alone_count_as_nothing_under_the_official_protocol(tmp_path: Path):
    path = write_lines(tmp_path / "own.jsonl", own(box=[1, 2, 30, 30]))
    for protocol, counts in (("official", ["1", "0", "0", "0"]), ("strict", ["0", "1", "0", "1"])):
        assert counts_table("custom", reading.read(path), protocol)[1][5:] == counts


@pytest.mark.parametrize(
    ("splits", "stated"),
    [
        ({"val": 1500, "testA": 750, "testB": 750}, ["1,500 differs", "750 differs", "750 differs"]),
        ({"val": 1300, "test": 2600}, ["1,300 differs", "2,600 differs"]),
        ({"val": 0}, ["-"]),
    ],
)
def test_the_refer_layouts_splits_have_published_counts(tmp_path: Path, splits: dict[str, int], stated: list[str]):
    records = reading.read(write(tmp_path, {split: [generalized(3, "a man", annotation())] for split in splits}))
    assert [row[4] for row in counts_table("refcoco", records, "official")[1:]] == stated


def test_another_picture_is_found(tmp_path: Path, images: Path, check: Check):
    cv2.imwrite(str(images / "1.jpg"), np.zeros((9, 9, 3), np.uint8))
    found = check(write(tmp_path, sound()), images)
    assert found.status == 1
    assert "train[0]: stated 60 x 40, the picture has 9 x 9" in found.out


def test_every_fault_is_listed(tmp_path: Path, images: Path, check: Check):
    path = write_lines(
        tmp_path / "own.jsonl", *(own(f"lost{i}.jpg", box=[1, 2, 30, 30]) for i in range(30)), {"image": 3}
    )
    found = check(path, images)
    missing = [entry for entry in found.listed if entry["fault"] == "missing picture"]
    assert {entry["file"] for entry in missing} == {f"lost{i}.jpg" for i in range(30)}
    assert re.search(r"\nmissing picture +30 +FAULT", found.out)
    assert "30 records dropped: its picture is missing: " in found.out
    unreadable = next(entry for entry in found.listed if entry["fault"] == "unreadable record")
    assert unreadable["record"] == "own.jsonl line 31"
    assert unreadable["fix"] == "the record is dropped: it cannot be read"


def test_boxes_alone_are_the_common_case_of_custom_data(tmp_path: Path, images: Path, check: Check):
    path = write_lines(tmp_path / "own.jsonl", own(box=[1, 2, 30, 30]))
    found = check(path, images)
    assert (found.status, len(found.fixed)) == (0, 1)
    found = check(path, images, "--protocol", "official")
    assert (found.status, found.fixed) == (1, [])
    assert "1 records dropped: an object has no mask; --protocol strict keeps it" in found.out
    assert "warning: no record of split 'train' is left" in found.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workers", "0"], "--workers is 0; expected at least 1"),
        (["--fix", "x.json"], "--fix x.json: the cleaned copy is JSON lines"),
        (["--fix", "own.jsonl"], "--fix own.jsonl: is the file that is checked; expected another name"),
        (["--list", "images"], "--list images: is a folder"),
        (["--list", "a.jsonl", "--fix", "a.jsonl"], "--fix a.jsonl: is also the file of --list"),
        (["--list", "/dev/null/x"], "--list|/dev/null/x: /dev/null is a file"),
        (["--draw", "d", "--split", "test"], "--split test: nothing to draw; expected one of train"),
        (["--draw", "own.jsonl"], "own.jsonl"),
    ],
)
def test_flags_are_checked(
    tmp_path: Path, images: Path, check: Check, flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "own.jsonl", own())
    with pytest.raises(InputError, match=message.split("|")[-1]):
        check(Path("own.jsonl"), images, *flags)


def test_the_real_sample(check: Check):
    root = oracle.data("refcoco_real")
    path = root / "annotations/grefs/instance.json"
    found = check(path, root / "images/mscoco/train2014", family="grefcoco")
    counts = {kind: sum(entry["fault"] == kind for entry in found.listed) for kind in found.kinds}
    # 18 pictures are shared because the sample's splits are cut from the same pictures
    assert counts == {"self-crossing polygon": 4, "picture in train and in another split": 18}
    records = reading.read(path)
    assert [r.id for r in found.fixed] == [r.id for r in records if r.split != "train"]
    sizes = {r.id: (r.height, r.width) for r in records}

    def drawn(record):
        return [masks.to_rle(i.segmentation, *sizes[record.id]) for i in record.instances if i.segmentation]

    originals = {r.id: drawn(r) for r in records}
    for record in found.fixed:
        assert drawn(record) == originals[record.id]
