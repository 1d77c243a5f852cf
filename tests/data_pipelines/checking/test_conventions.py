"""Boxes in another convention are a fault that names it, with and without a mask to compare them with."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data_pipelines.checking.run import Check, own, write_lines
from tests.data_pipelines.make import picture

RNG = np.random.default_rng(0)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """One picture of 600 x 400."""
    import cv2

    picture(tmp_path / "images", "small.jpg")
    cv2.imwrite(str(tmp_path / "images/1.jpg"), np.full((400, 600, 3), 99, np.uint8))
    return tmp_path / "images"


def boxes(num: int) -> list[tuple[int, int, int, int]]:
    """Corners of random boxes in 600 x 400."""
    rng = np.random.default_rng(num)
    x, y = rng.integers(0, 400, num), rng.integers(0, 250, num)
    w, h = rng.integers(50, 200, num), rng.integers(40, 150, num)
    return list(zip(*(v.tolist() for v in (x, y, x + w, y + h)), strict=True))


CONVENTIONS = {
    "[x, y, width, height]": lambda x1, y1, x2, y2: [x1, y1, x2 - x1, y2 - y1],
    "normalized to 0..1000": lambda x1, y1, x2, y2: [round(1000 * v) for v in (x1 / 600, y1 / 400, x2 / 600, y2 / 400)],
    "normalized to 0..1": lambda x1, y1, x2, y2: [x1 / 600, y1 / 400, x2 / 600, y2 / 400],
}


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("num", [8, 40])
def test_boxes_alone(tmp_path: Path, large: Path, check: Check, convention: str, num: int):
    entries = [own(text=f"object {i}", box=CONVENTIONS[convention](*box)) for i, box in enumerate(boxes(num))]
    found = check(write_lines(tmp_path / "own.jsonl", *entries), large)
    suspects = [entry for entry in found.listed if entry["fault"] == "box in another convention"]
    assert len(suspects) == num
    assert all(entry["value"].endswith(convention) for entry in suspects)
    assert found.fixed == []


@pytest.mark.parametrize(
    "box", [[30, 30, 30, 50], [300, 200, 250, 150], [500, 5, 700, 20], [5, 5, 700, 300], [10, 300, 30, 500]]
)
def test_a_single_bad_box_is_no_convention(tmp_path: Path, large: Path, check: Check, box: list[int]):
    x1, y1, x2, y2 = box
    paths = [write_lines(tmp_path / "own.jsonl", own(box=box))]
    if x2 > x1:
        images = [{"id": 1, "file_name": "1.jpg"}]
        annotations = [{"image_id": 1, "caption": "a dog", "bbox": [x1, y1, x2 - x1, y2 - y1]}]
        paths.append(tmp_path / "coco.json")
        paths[1].write_text(json.dumps({"images": images, "annotations": annotations}))
    for path in paths:
        found = check(path, large)
        assert found.kinds - {"box without mask"} <= {
            "empty box",
            "box far outside the picture",
            "box in another convention",
        }
        for entry in found.listed:
            assert ("look like" in entry["value"]) == (entry["fault"] == "box in another convention")
        assert found.fixed == []


def test_percents_alone(tmp_path: Path, large: Path, check: Check):
    percents = [own(text=f"object {i}", box=[9 * i, 8 * i, 9 * i + 20, 8 * i + 30]) for i in range(9)]
    found = check(write_lines(tmp_path / "own.jsonl", *percents), large)
    assert {e["value"].rpartition("look like ")[2] for e in found.listed if e["level"] == "fault"} == {
        "normalized to 0..100"
    }
    small = [entry | {"image": "small.jpg"} for entry in percents[5:]]
    found = check(write_lines(tmp_path / "own.jsonl", *small), large)
    assert {e["value"].rpartition("look like ")[2] for e in found.listed if e["level"] == "fault"} == {
        "normalized to 0..100"
    }
    assert found.fixed == []


@pytest.mark.parametrize("num", [1, 2, 8, 40])
def test_right_boxes_alone_are_not_suspected(tmp_path: Path, large: Path, check: Check, num: int):
    entries = [own(text=f"object {i}", box=box) for i, box in enumerate(boxes(num))]
    found = check(write_lines(tmp_path / "own.jsonl", *entries), large)
    assert (found.status, found.kinds) == (0, {"box without mask"})


def test_a_few_boxes_that_fit_both_ways_are_left(tmp_path: Path, large: Path, check: Check):
    path = write_lines(tmp_path / "own.jsonl", own(box=[180, 120, 243, 203]))
    found = check(path, large)
    suspect = next(entry for entry in found.listed if entry["fault"] == "box perhaps in another convention")
    assert suspect["value"].endswith("look like [x, y, width, height]")
    assert (found.status, len(found.fixed)) == (1, 1)
    annotation = {"image_id": 1, "caption": "a dog", "bbox": [180, 120, 63, 83]}
    path.write_text(json.dumps({"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [annotation]}))
    assert check(path, large).kinds == {"box without mask"}  # COCO's boxes have width and height


def test_corners_in_coco_are_found(tmp_path: Path, large: Path, check: Check):
    images = [{"id": 1, "file_name": "1.jpg", "width": 600, "height": 400}]
    annotations = [
        {"id": i, "image_id": 1, "caption": f"object {i}", "bbox": box, "segmentation": []}
        for i, box in enumerate(boxes(8))
    ]
    path = tmp_path / "coco.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    found = check(path, large)
    suspect = next(entry for entry in found.listed if entry["fault"] == "box in another convention")
    assert "look like corners [x1, y1, x2, y2], where [x, y, width, height] is expected" in suspect["value"]


@pytest.mark.parametrize("convention", [*CONVENTIONS])
def test_a_box_with_a_mask_is_explained_and_repaired(tmp_path: Path, large: Path, check: Check, convention: str):
    x1, y1, x2, y2 = 300, 200, 380, 290
    mask = [[x1, y1, x2, y1, x2, y2, x1, y2]]
    path = write_lines(tmp_path / "own.jsonl", own(box=CONVENTIONS[convention](x1, y1, x2, y2), mask=mask))
    found = check(path, large)
    assert found.status == 1
    assert convention in " ".join(entry["value"] for entry in found.listed) or found.kinds == {"empty box"}
    assert [i.box for r in found.fixed for i in r.instances] == [(x1, y1, x2, y2)]


@pytest.mark.parametrize(
    "target",
    [
        {"mask": [[0.1, 0.1, 0.5, 0.1, 0.5, 0.5]]},
        {"mask": [[20, 10, 80, 10, 80, 70, 20, 700]], "box": [20, 10, 80, 70]},
        {"mask": [[20, 10, 80, 10, 80, 70, -300, 70]], "box": [20, 10, 80, 70]},
        {"mask": [[20, 10, 80, 10, 80, 70, 20, 70]], "box": [420, 210, 480, 270]},
        {"box": [20, 10, 80, 700]},
    ],
)
def test_what_is_not_explained_is_dropped(tmp_path: Path, large: Path, check: Check, target: dict[str, Any]):
    path = write_lines(tmp_path / "own.jsonl", own(**target), own(text="nothing"))
    found = check(path, large)
    assert found.status == 1
    assert [record.expressions for record in found.fixed] == [("nothing",)]
