"""Each planted fault is found, and only it; --fix leaves files in which nothing is found."""

import json
import re
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pytest

from data_pipelines import masks
from data_pipelines.annotations import reading
from data_pipelines.check import check, counts_table, faults_table, format_table, main, read
from data_pipelines.checking.faults import KINDS, Rules, crosses_itself, is_note, look_at_pictures, polygon_is_empty
from data_pipelines.checking.fixes import fix
from data_pipelines.records import check_protocol, select
from instancevg_jax.errors import InputError
from instancevg_jax.inputs.tokenizer import Tokenizer
from tests import oracle
from tests.data_pipelines.make import HEIGHT, NULL, POLYGON, WIDTH, annotation, generalized, picture

MAX_TOKENS = 20
BOW_TIE = [[10, 10, 30, 30, 30, 10, 10, 30]]
OTHER_SIZE = {"size": [HEIGHT + 1, WIDTH], "counts": [0, 100, (HEIGHT + 1) * WIDTH - 100]}


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer.from_bytes(oracle.fixture("f8_tokenizer")["spm_model_bytes"].tobytes(), "fixture")


@pytest.fixture
def rules(tokenizer: Tokenizer) -> Rules:
    return Rules(tokenizer, MAX_TOKENS, max_targets=3, grouped=True)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("1.jpg", "2.jpg", "3.jpg"):
        picture(tmp_path / "images", name)
    return tmp_path / "images"


def write(tmp_path: Path, content: dict[str, Any]) -> Path:
    path = tmp_path / "instance.json"
    path.write_text(json.dumps(content))
    (tmp_path / "instance_index.json").write_text('{"val": [[0, 1]]}')
    return path


def sound() -> dict[str, list]:
    """A file in which nothing is wrong."""
    train = [generalized(1, "a red dog", annotation(), annotation(30, 15)), generalized(2, "a cat", NULL)]
    return {"train": train, "val": [[generalized(3, "the man on the left", annotation())]]}


def plant(kind: str, content: dict[str, list], images: Path) -> None:
    first, second = content["train"]
    target = first["annotations"][0]
    match kind:
        case "unreadable record":
            first["annotations"].append(3)
        case "split that cannot be stored":
            content["val-1"] = [generalized(3, "a man", annotation()) | {"group": "g"}]
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


def test_nothing_is_found_in_sound_files(tmp_path: Path, images: Path, rules: Rules):
    assert check(reading.read(write(tmp_path, sound())), images, rules, None, 2) == []


LEFT = {"split that cannot be stored", "more objects than max_targets", "no group"}


@pytest.mark.parametrize("protocol", ["official", "strict"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_fault_is_found_and_mended(
    tmp_path: Path, images: Path, rules: Rules, kind: str, protocol: Literal["official", "strict"]
):
    content = sound()
    plant(kind, content, images)
    rules, cleaned = replace(rules, protocol=protocol), tmp_path / "cleaned.jsonl"
    records, unreadable = read([write(tmp_path, content)])
    if kind == "split that cannot be stored":
        records[-1] = replace(records[-1], group="g")
    faults = check(records, images, rules, cleaned, 2, unreadable)
    assert {fault.kind for fault in faults} == {kind}
    assert faults[0].where in (
        *("train[0]", "1.jpg", "3.jpg", "train/sent4", "train[2]", "val[1][0]", "val-1", "instance.json train[0]"),
    )
    again = check(reading.read(cleaned), images, rules, None, 2)
    left = {kind} if kind in LEFT or is_note(kind, protocol) else set()
    if kind == "mask cannot be drawn" and protocol == "strict":
        left = {"box without mask"}
    assert {fault.kind for fault in again} == left


@pytest.mark.parametrize(("protocol", "kept"), [("official", 1), ("strict", 2)])
def test_a_mask_that_is_dropped_takes_its_record_along_where_the_protocol_needs_it(
    tmp_path: Path, images: Path, protocol: Literal["official", "strict"], kept: int, capsys: pytest.CaptureFixture[str]
):
    bad, good = annotation(segmentation=[[10, 10, 30, 10]]), annotation(30, 15)
    content = {"train": [generalized(1, "two dogs", bad, good), generalized(2, "a dog", good)]}
    records = reading.read(write(tmp_path, content))
    check(records, images, Rules(protocol=protocol), tmp_path / "cleaned.jsonl", 1)
    cleaned = reading.read(tmp_path / "cleaned.jsonl")
    assert [len(select(record, protocol).objects) for record in cleaned] == [2, 1][-kept:]
    dropped = "1 records dropped: an object has no mask; --protocol strict keeps it" in capsys.readouterr().out
    assert dropped == (protocol == "official")


@pytest.mark.parametrize("segmentation", [{"size": [HEIGHT, WIDTH], "counts": c} for c in ("55", "abc", "")])
def test_runs_that_do_not_fill_the_picture_are_found(tmp_path: Path, images: Path, segmentation: dict[str, Any]):
    content = {"train": [generalized(1, "a dog", annotation(segmentation=segmentation))]}
    faults = check(reading.read(write(tmp_path, content)), images, Rules(), None, 1)
    assert [(fault.kind, fault.detail) for fault in faults] == [
        ("mask cannot be drawn", "the RLE does not fill a mask of 60 x 40")
    ]


def test_folders_may_repeat_names_but_not_cocos(tmp_path: Path, images: Path):
    lines = [
        {"image": f"{split}/{name}", "split": split, "expressions": "a dog", "objects": []}
        for split in ("train", "val")
        for name in ("0001.jpg", "COCO_train2014_000000000009.jpg")
    ]
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    for line in lines:
        picture(images / line["split"], line["image"].split("/")[1])
    faults = check(reading.read(path), images, Rules(), tmp_path / "cleaned.jsonl", 1)
    assert faults == [("picture in train and in another split", "train/COCO_train2014_000000000009.jpg", "")]
    kept = reading.read(tmp_path / "cleaned.jsonl")
    assert [record.picture for record in kept] == ["train/0001.jpg", *(line["image"] for line in lines[2:])]


def test_lines_of_two_files_are_not_one_id(tmp_path: Path, images: Path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"image": "1.jpg", "expressions": "a dog"}')
    records, _ = read([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])
    assert check(records, images, Rules(), None, 1) == []


def test_splits_of_one_stored_name_are_found(tmp_path: Path, images: Path):
    records = reading.read(write(tmp_path, {s: [generalized(3, "a man", annotation())] for s in ("val+", "valplus")}))
    faults = check(records, images, Rules(), None, 1)
    assert faults == [("split that cannot be stored", "valplus", "'val+' would be stored under the same name")]


def test_fix_says_what_it_changed(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]):
    content = sound()
    for kind in ("mask without box", "null among objects", "duplicate id"):
        plant(kind, content, images)
    content["train"][0]["annotations"][2]["segmentation"].append([1, 1, 5, 5])
    check(reading.read(write(tmp_path, content)), images, Rules(), tmp_path / "new/cleaned.jsonl", 1)
    printed = capsys.readouterr().out
    assert "cleaned.jsonl: 3 of 3 records" in printed
    for line in (
        "1 nulls among objects dropped",
        "1 boxes drawn around",
        "1 empty polygons",
        "1 duplicate ids changed",
    ):
        assert line in printed
    first = reading.read(tmp_path / "new/cleaned.jsonl")[0]
    assert [instance.box for instance in first.instances] == [(10, 10, 30, 30), (30, 15, 50, 35)]


def test_a_record_that_loses_its_objects_is_dropped_and_not_called_empty(images: Path, tmp_path: Path):
    content = {"val": [generalized(1, "a dog", annotation(bbox=[70, 10, 5, 5], segmentation=None))]}
    records = reading.read(write(tmp_path, content))
    fixed, done = fix(records, look_at_pictures(["1.jpg"], images, 1), "official")
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


def test_crossing_of_many_points_takes_little_memory():
    angles = np.linspace(0, 2 * np.pi, 4000, endpoint=False)
    circle = (np.stack([np.cos(angles), np.sin(angles)], 1) * 100).ravel().tolist()
    tracemalloc.start()
    assert not crosses_itself(circle)
    assert tracemalloc.get_traced_memory()[1] < 150e6
    tracemalloc.stop()
    circle[-2:] = [-190, 1]
    assert crosses_itself(circle)


def test_emptiness():
    assert polygon_is_empty([])
    assert polygon_is_empty([1, 1, 5, 5])
    assert polygon_is_empty([1, 1, 1, 5, 1, 9])
    assert not polygon_is_empty([1, 1, 5, 5, 1, 5])


def test_the_tables_hold_every_kind_and_split(tmp_path: Path, images: Path):
    records = reading.read(write(tmp_path, sound()))
    counts = format_table(counts_table("grefcoco", records, "official"))
    assert "16,994 differs" in counts
    assert [line.split()[0] for line in counts.splitlines()[2:]] == ["train", "val"]
    faults = format_table(faults_table([], Rules()))
    assert all(kind in faults for kind in KINDS)
    assert "needs --tokenizer" in faults


def test_boxes_alone_count_as_nothing_under_the_official_protocol(tmp_path: Path):
    path = tmp_path / "own.jsonl"
    path.write_text('{"image": "1.jpg", "expressions": "a dog", "objects": [{"box": [1, 2, 30, 30]}]}')
    for protocol, counts in (("official", ["1", "0", "0", "0"]), ("strict", ["0", "1", "0", "1"])):
        assert counts_table("custom", reading.read(path), check_protocol(protocol))[1][5:] == counts


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


def test_the_commands_protocol_and_settings(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "own.jsonl"
    path.write_text('{"image": "1.jpg", "expressions": "a dog", "objects": [{"box": [1, 2, 30, 30]}]}\n{"image": 3}')
    command = ["custom", "--annotations", path, "--images", images]
    assert run(monkeypatch, *command) == 1
    printed = capsys.readouterr().out
    assert "own.jsonl line 2: line 2.image is 3; expected a string" in printed
    assert re.search(r"box without mask +1 +FAULT", printed)
    path.write_text(path.read_text().splitlines()[0])
    assert run(monkeypatch, *command, "--protocol", "strict") == 0
    assert re.search(r"box without mask +1 +note", capsys.readouterr().out)
    monkeypatch.setattr("sys.argv", ["check", *map(str, command), "--workers", "0"])
    with pytest.raises(InputError, match="--workers is 0; expected at least 1"):
        main()


def test_the_real_sample(tmp_path: Path):
    root = oracle.data("refcoco_real")
    records = reading.read(root / "annotations/grefs/instance.json")
    faults = check(records, root / "images/mscoco/train2014", Rules(), tmp_path / "cleaned.jsonl", 2)
    found = {kind: sum(f.kind == kind for f in faults) for kind in {f.kind for f in faults}}
    # 18 pictures are shared because the sample's splits are cut from the same pictures
    assert found == {"self-crossing polygon": 4, "picture in train and in another split": 18}
    cleaned = reading.read(tmp_path / "cleaned.jsonl")
    assert [r.id for r in cleaned] == [r.id for r in records if r.split != "train"]
    sizes = {r.id: (r.height, r.width) for r in records}
    drawn = {r.id: [masks.to_rle(i.segmentation, *sizes[r.id]) for i in r.instances if i.segmentation] for r in records}
    for record in cleaned:
        assert [masks.to_rle(i.segmentation, *sizes[record.id]) for i in record.instances if i.segmentation] == drawn[
            record.id
        ]
