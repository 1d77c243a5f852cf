"""What an answer can become: text, JSON, COCO results, detections, files, a drawing; an empty one as easily as a full one."""

import io
import json
import sys
import types
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pytest
from PIL import Image, ImageShow
from pycocotools import mask as coco_masks

import instancevg_jax
from instancevg_jax.answers.explain import draw_explanation, draw_point_map, draw_queries, draw_words
from instancevg_jax.answers.grounding import Evidence, Grounding
from instancevg_jax.errors import InputError

HEIGHT, WIDTH = 40, 60


def answer(count: int, queries: int = 6) -> Grounding:
    """`count` objects, each a rectangle, of 6 queries."""
    masks = np.zeros((count, HEIGHT, WIDTH), bool)
    boxes = np.array([[8 * i, 5, 8 * i + 6, 25] for i in range(count)], np.float32).reshape(-1, 4)
    for i in range(count):
        masks[i, 5:25, 8 * i : 8 * i + 6] = True
    rng = np.random.default_rng(0)
    evidence = Evidence(
        point_map=rng.random((4, 4), np.float32),
        attention=rng.random((queries, 4, 4), np.float32),
        tokens=("<s>", "red", "<circle>", "</s>", "", ""),
        points_xy=rng.uniform(0, 40, (queries, 2)).astype(np.float32),
        boxes_xyxy=np.tile(np.array([5, 5, 30, 30], np.float32), (queries, 1)),
        scores=np.linspace(0.9, 0.1, queries, dtype=np.float32),
        masks=rng.random((queries, 32, 32)) > 0.5,
        counted=np.arange(queries) < count,
    )
    return Grounding(
        boxes_xyxy=boxes,
        scores=np.linspace(0.9, 0.8, count, dtype=np.float32),
        masks=masks,
        points_xy=boxes[:, :2],
        mask=masks.any(0),
        exists=count > 0,
        no_target_probability=0.2 if count else 0.9,
        best_score=0.9 if count else 0.1,
        score_threshold=0.5,
        expression="the <red> thing",
        picture=np.full((HEIGHT, WIDTH, 3), 128, np.uint8),
        notes=("unknown words: thing",),
        evidence=evidence,
    )


@pytest.mark.parametrize("count", [0, 1, 5])
def test_every_form_of_any_number_of_objects(count: int, tmp_path: Path):
    grounding = answer(count)
    assert len(grounding) == count
    assert bool(grounding) == (count > 0)
    assert "\n" not in repr(grounding)
    assert len(repr(grounding)) < 200

    values = json.loads(json.dumps(grounding.to_json()))
    assert values["verdict"] == grounding.verdict
    assert [found["box_xyxy"] for found in values["objects"]] == grounding.boxes_xyxy.tolist()
    np.testing.assert_array_equal(coco_masks.decode(values["mask"]), grounding.mask)

    entries = grounding.to_coco(image_id=7)
    assert [entry["bbox"] for entry in entries] == [[8.0 * i, 5.0, 6.0, 20.0] for i in range(count)]
    assert {entry["image_id"] for entry in entries} <= {7}

    paths = grounding.save_masks(tmp_path / "masks")
    assert [path.name for path in paths] == ["mask.png", *(f"object-{i + 1}.png" for i in range(count))]
    for path, mask in zip(paths, [grounding.mask, *grounding.masks], strict=True):
        np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), mask.astype(np.uint8) * 255)

    assert grounding.draw().width >= 480
    assert Image.open(io.BytesIO(grounding._repr_png_() or b"")).size == grounding.draw().size
    page = grounding._repr_html_()
    assert "&lt;red&gt;" in page
    assert "<red>" not in page
    assert page.count("<tr>") == (count + 1 if count else 0)


@pytest.mark.parametrize("count", [0, 2])
def test_supervision_gets_what_it_expects(count: int, monkeypatch: pytest.MonkeyPatch):
    """A stand-in that checks what `supervision.Detections` checks: shapes and types."""
    seen = {}
    module = types.ModuleType("supervision")
    module.Detections = lambda **fields: seen.update(fields) or "detections"  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "supervision", module)
    assert answer(count).to_supervision() == "detections"
    assert seen["xyxy"].shape == (count, 4)
    assert (seen["mask"].shape, seen["mask"].dtype) == ((count, HEIGHT, WIDTH), bool)
    assert seen["confidence"].shape == seen["class_id"].shape == seen["data"]["class_name"].shape == (count,)
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(InputError, match=r"pip install 'instancevg_jax\[supervision\]'"):
        answer(count).to_supervision()


@pytest.mark.parametrize("count", [0, 1, 5])
def test_supervision_draws_it(count: int):
    """With the real package, where it is installed."""
    supervision = pytest.importorskip("supervision")
    grounding = answer(count)
    detections = grounding.to_supervision()
    assert isinstance(detections, supervision.Detections)
    assert len(detections) == count
    assert len(supervision.Detections.merge([detections, answer(0).to_supervision()])) == count
    assert detections[detections.confidence > 2].is_empty()
    assert grounding.picture is not None
    canvas = grounding.picture.copy()
    for annotator in (supervision.MaskAnnotator(), supervision.BoxAnnotator(), supervision.LabelAnnotator()):
        canvas = annotator.annotate(canvas, detections)
    assert (canvas != grounding.picture).any() == (count > 0)


def test_it_is_shown_where_the_user_is(monkeypatch: pytest.MonkeyPatch):
    shown = []
    monkeypatch.setattr(ImageShow, "_viewers", [])
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    with pytest.raises(InputError, match=r"no picture viewer was found; save the drawing"):
        answer(1).show()
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    monkeypatch.setitem(sys.modules, "IPython.display", cast(Any, types.SimpleNamespace(display=shown.append)))
    answer(1).show()
    assert shown[0].size == answer(1).draw().size


def test_an_answer_without_its_picture_asks_for_it():
    grounding = Grounding(**{**vars(answer(1)), "picture": None, "evidence": None})
    with pytest.raises(InputError, match="keeps no picture"):
        grounding.draw()
    assert grounding._repr_png_() is None
    assert "1 object" in grounding._repr_html_()
    assert grounding.draw(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).width >= 480
    with pytest.raises(InputError, match="the picture is 30 x 20 pixels; expected the 60 x 40"):
        grounding.draw(np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(InputError, match="no evidence"):
        grounding.explain(np.zeros((HEIGHT, WIDTH, 3), np.uint8))


def test_the_explanation_shows_every_query_and_token():
    grounding = answer(2)
    evidence, picture = grounding.evidence, grounding.picture
    assert evidence is not None
    assert picture is not None
    words, queries = draw_words(picture, evidence), draw_queries(picture, evidence)
    assert words.shape[0] == queries.shape[0]  # six tiles each, in two rows
    heat = draw_point_map(picture, Evidence(**{**vars(evidence), "points_xy": np.zeros((0, 2))})).astype(int)
    hot, cold = (
        heat[tuple(((np.array(np.unravel_index(index, (4, 4))) + 0.5) * heat.shape[0] / 4 * [1, 1.5]).astype(int))]
        for index in (evidence.point_map.argmax(), evidence.point_map.argmin())
    )
    assert hot[0] - hot[2] > 0 > cold[0] - cold[2]  # red where the map is high, blue where it is low
    whole = draw_explanation(picture, grounding, grounding.expression)
    assert whole.shape[0] > words.shape[0] + queries.shape[0] + heat.shape[0]
    assert np.asarray(grounding.explain()).shape == whole.shape


def test_public_names_are_listed():
    assert {*instancevg_jax.__all__} <= {*dir(instancevg_jax)}
    for name in instancevg_jax.__all__:
        assert getattr(instancevg_jax, name) is not None
