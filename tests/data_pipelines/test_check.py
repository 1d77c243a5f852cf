"""Each planted fault is found, and only it; --fix leaves files in which nothing is found."""

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from data_pipelines import annotations, masks
from data_pipelines.check import check, counts_table, faults_table, format_table, main
from data_pipelines.faults import KINDS, NOTES, crosses_itself, look_at_pictures, polygon_is_empty
from data_pipelines.fixes import fix
from instancevg_jax.tokenizer import Tokenizer
from tests import oracle
from tests.data_pipelines.make import HEIGHT, NULL, POLYGON, WIDTH, annotation, generalized, picture

MAX_TOKENS = 20
BOW_TIE = [[10, 10, 30, 30, 30, 10, 10, 30]]
OTHER_SIZE = {"size": [HEIGHT + 1, WIDTH], "counts": [0, 100, (HEIGHT + 1) * WIDTH - 100]}


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer.from_bytes(oracle.fixture("f8_tokenizer")["spm_model_bytes"].tobytes(), "fixture")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("1.jpg", "2.jpg", "3.jpg"):
        picture(tmp_path / "images", name)
    return tmp_path / "images"


def write(tmp_path: Path, content: dict[str, Any]) -> Path:
    path = tmp_path / "instance.json"
    path.write_text(json.dumps(content))
    return path


def sound() -> dict[str, list]:
    """A file in which nothing is wrong."""
    train = [generalized(1, "a red dog", annotation(), annotation(30, 15)), generalized(2, "a cat", NULL)]
    return {"train": train, "val": [generalized(3, "the man on the left", annotation())]}


def plant(kind: str, content: dict[str, list], images: Path) -> None:
    first, second = content["train"]
    target = first["annotations"][0]
    match kind:
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
            target["bbox"] = [10, 10, 20, HEIGHT]
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
        case "duplicate id":
            first["expressions"]["sent_id"] = second["expressions"]["sent_id"] = 4
        case "picture in train and in another split":
            second |= {"file_name": "3.jpg"}


def test_nothing_is_found_in_sound_files(tmp_path: Path, images: Path, tokenizer: Tokenizer):
    assert check(annotations.read(write(tmp_path, sound())), images, tokenizer, MAX_TOKENS, None, 2) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_fault_is_found_and_mended(tmp_path: Path, images: Path, tokenizer: Tokenizer, kind: str):
    content = sound()
    plant(kind, content, images)
    cleaned = tmp_path / "cleaned.jsonl"
    faults = check(annotations.read(write(tmp_path, content)), images, tokenizer, MAX_TOKENS, cleaned, 2)
    assert {fault.kind for fault in faults} == {kind}
    assert faults[0].where in ("train[0]", "1.jpg", "3.jpg", "train/sent4")
    again = check(annotations.read(cleaned), images, tokenizer, MAX_TOKENS, None, 2)
    harmless = {"mask cannot be drawn": {"box without mask"}}.get(kind, {kind} & NOTES)
    assert {fault.kind for fault in again} == harmless


def test_fix_says_what_it_changed(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]):
    content = sound()
    for kind in ("mask without box", "null among objects", "duplicate id"):
        plant(kind, content, images)
    content["train"][0]["annotations"][2]["segmentation"] = [*POLYGON, [1, 1, 5, 5]]
    check(annotations.read(write(tmp_path, content)), images, None, MAX_TOKENS, tmp_path / "cleaned.jsonl", 1)
    printed = capsys.readouterr().out
    assert "cleaned.jsonl: 3 of 3 records" in printed
    for line in (
        "1 nulls among objects dropped",
        "1 boxes drawn around",
        "1 empty polygons",
        "1 duplicate ids changed",
    ):
        assert line in printed
    first = annotations.read(tmp_path / "cleaned.jsonl")[0]
    assert [instance.box for instance in first.instances] == [(10, 10, 30, 30), (30, 15, 50, 35)]


def test_a_record_that_loses_its_objects_is_dropped_and_not_called_empty(images: Path, tmp_path: Path):
    content = {"val": [generalized(1, "a dog", annotation(bbox=[70, 10, 5, 5], segmentation=None))]}
    records = annotations.read(write(tmp_path, content))
    fixed, done = fix(records, look_at_pictures(["1.jpg"], images, 1))
    assert fixed == []
    assert done["records dropped: no object is left of them"] == 1


@pytest.mark.parametrize(
    ("polygon", "crosses"),
    [
        ([0, 0, 10, 0, 10, 10, 0, 10], False),
        ([0, 0, 10, 10, 10, 0, 0, 10], True),
        ([0, 0, 10, 0, 10, 10, 5, 2, 0, 10], False),
        ([0, 0, 10, 0, 10, 10, 5, -2, 0, 10], True),
        ([0, 0, 5, 0, 5, 0, 10, 0, 10, 10], False),
        ([0, 0, 10, 0, 5, 5, 5, 0, 0, 10], False),
    ],
)
def test_crossing(polygon: list[float], crosses: bool):
    assert crosses_itself(polygon) is crosses


def test_emptiness():
    assert polygon_is_empty([])
    assert polygon_is_empty([1, 1, 5, 5])
    assert polygon_is_empty([1, 1, 1, 5, 1, 9])
    assert not polygon_is_empty([1, 1, 5, 5, 1, 5])


def test_the_tables_hold_every_kind_and_split(tmp_path: Path, images: Path):
    records = annotations.read(write(tmp_path, sound()))
    counts = format_table(counts_table("grefcoco", records))
    assert "16,994 differs" in counts
    assert [line.split()[0] for line in counts.splitlines()[2:]] == ["train", "val"]
    faults = format_table(faults_table([], lengths_checked=False))
    assert all(kind in faults for kind in KINDS)
    assert "needs --tokenizer" in faults


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["check", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert isinstance(exit_info.value.code, int)
    return exit_info.value.code


def test_the_command(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    path = write(tmp_path, sound())
    assert run(monkeypatch, "custom", "--annotations", path, "--images", images) == 0
    shutil.copy(images / "2.jpg", images / "1.jpg")
    cv2.imwrite(str(images / "1.jpg"), np.zeros((9, 9, 3), np.uint8))
    assert run(monkeypatch, "custom", "--annotations", path, "--images", images) == 1
    assert "train[0]: stated 60 x 40, the picture has 9 x 9" in capsys.readouterr().out


def test_the_real_sample(tmp_path: Path):
    root = oracle.data("refcoco_real")
    records = annotations.read(root / "annotations/grefs/instance.json")
    faults = check(records, root / "images/mscoco/train2014", None, 50, tmp_path / "cleaned.jsonl", 2)
    found = {kind: sum(f.kind == kind for f in faults) for kind in {f.kind for f in faults}}
    # 18 pictures are shared because the sample's splits are cut from the same pictures
    assert found == {"self-crossing polygon": 4, "picture in train and in another split": 18}
    cleaned = annotations.read(tmp_path / "cleaned.jsonl")
    assert [r.id for r in cleaned] == [r.id for r in records if r.split != "train"]
    sizes = {r.id: (r.height, r.width) for r in records}
    drawn = {r.id: [masks.to_rle(i.segmentation, *sizes[r.id]) for i in r.instances if i.segmentation] for r in records}
    for record in cleaned:
        assert [masks.to_rle(i.segmentation, *sizes[record.id]) for i in record.instances if i.segmentation] == drawn[
            record.id
        ]
