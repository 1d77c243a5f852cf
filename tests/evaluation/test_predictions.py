"""Files of predictions: every form of the format, what is missing in them, and what is refused."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.splits import Split
from instancevg_jax.answers.grounding import encode_mask
from instancevg_jax.config import Config
from instancevg_jax.errors import InputError
from instancevg_jax.evaluation import coco
from instancevg_jax.evaluation.evaluator import Evaluation, open_eval_split
from instancevg_jax.evaluation.predictions import score_predictions
from tests.data_pipelines.make import HEIGHT, WIDTH
from tests.evaluation.test_evaluator import Square, coco_entries, config_of, evaluate, prepared, tokenizer

__all__ = ["prepared", "tokenizer"]  # fixtures: a square, nothing, the square after a null annotation

BOX = [10, 10, 30, 30]
MASK = np.zeros((HEIGHT, WIDTH), bool)
MASK[10:30, 10:30] = True
RUNS = encode_mask(MASK)
UNCOMPRESSED = [410, *[20, 20] * 19, 20, 1210]
WHOLE = {"boxes": [BOX], "scores": [0.9], "masks": [RUNS]}
NONE = {"record": 1, "no_target": True}


@pytest.fixture
def opened(prepared, tokenizer) -> tuple[Config, Split]:
    config = config_of(prepared, protocol="strict", resolution="original")
    return config, open_eval_split(config, "val", tokenizer)


def score(path: Path, opened: tuple[Config, Split], *predictions: dict, as_list: bool = False) -> Evaluation:
    text = json.dumps(predictions) if as_list else "\n".join(map(json.dumps, predictions)) + "\n\n"
    path.write_bytes(gzip.compress(text.encode("utf-16")) if as_list else text.encode("utf-8-sig"))
    return score_predictions(path, opened[0], "val", opened[1])


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize(
    "square",
    [
        WHOLE,
        {"boxes": [BOX, [0, 0, 5, 5]], "scores": [0.9, 0.1], "masks": [RUNS, encode_mask(~MASK)]},
        {"boxes": [BOX], "mask": RUNS, "no_target": False},
        {"boxes": [BOX], "mask": {"size": [HEIGHT, WIDTH], "counts": UNCOMPRESSED}},
    ],
)
def test_right_answers_in_every_form(tmp_path, opened, square, as_list):
    predictions = {"record": 0, **square}, NONE, {"record_id": "val[2]", **square}
    evaluation = score(tmp_path / "p.jsonl", opened, *predictions, as_list=as_list)
    for name in ("gIoU", "cIoU", "F1", "N_acc", "T_acc", "REC", "Pr@0.9"):
        assert evaluation.metrics[name] == 100, name


def test_boxes_or_masks_alone(tmp_path, opened):
    boxes = score(tmp_path / "p.jsonl", opened, *({"record": i, "boxes": [BOX]} for i in (0, 2)), NONE).metrics
    assert (boxes["F1"], boxes["REC"], boxes["gres_N_acc"]) == (100, 100, 100)
    assert np.isnan([boxes["gIoU"], boxes["cIoU"], boxes["Pr@0.7"]]).all()
    masks = score(tmp_path / "p.jsonl", opened, *({"record": i, "mask": RUNS} for i in (0, 2)), NONE).metrics
    assert (masks["gIoU"], masks["cIoU"], masks["gres_T_acc"]) == (100, 100, 100)
    assert np.isnan([masks["F1"], masks["T_acc"], masks["REC"]]).all()
    empty = {"record": 1, "mask": encode_mask(np.zeros_like(MASK))}  # an empty mask says that nothing is meant
    assert score(tmp_path / "p.jsonl", opened, {"record": 0, **WHOLE}, empty, {"record": 2, **WHOLE}).rows[1].says_none


@pytest.mark.parametrize("task", ["gres", "refcoco"])
def test_coco_results_give_the_evaluations_numbers(tmp_path, prepared, tokenizer, task):
    for threshold in (0.7, 0.95):
        config = config_of(prepared, task=task, protocol="strict", resolution="original", score_threshold=threshold)
        config.eval.mask_merge = "instance"  # the format has no merged mask
        coco.write(tmp_path / "p.json", coco_entries(Square(), config, tokenizer, "val"))
        if threshold == 0.95 and task == "gres":
            assert json.loads((tmp_path / "p.json").read_text()) == []
        scored = score_predictions(
            tmp_path / "p.json", config, "val", open_eval_split(config, "val", tokenizer)
        ).metrics
        expected = evaluate(Square(), config, tokenizer, "val").metrics
        for name in expected.keys() - {"coverage", "REC" if task == "gres" else ""}:
            if threshold == 0.7 or name.startswith(("DetACC", "F1", "N_acc", "gIoU")):
                assert scored[name] == pytest.approx(expected[name], rel=1e-6), name


@pytest.mark.parametrize(
    ("prediction", "says"),
    [
        (
            {"record": 3, **WHOLE},
            r"record 3 is not in the split; expected record 0 to 2, or record_id such as 'val\[0\]'",
        ),
        ({"record_id": "val[7]", **WHOLE}, r"record_id 'val\[7\]' is not in the split"),
        ({"record": 1, "record_id": "val[2]", **WHOLE}, r"record 1 is not 'val\[2\]', which is record 2"),
        (WHOLE, "record None is not in the split"),
        ({"record": 0, "bboxes": []}, "unknown key 'bboxes'; expected record, record_id, boxes"),
        ({"record": 0}, "has no boxes, masks or mask; expected some of them, or no_target"),
        ({"record": 0, "boxes": [BOX], "no_target": True}, "no_target is true, but there are boxes"),
        ({"record": 0, "boxes": [BOX], "no_target": "no"}, "no_target is 'no'; expected true or false"),
        ({"record": 0, "boxes": BOX[0]}, "boxes is 10; expected a list"),
        (
            {"record": 0, "boxes": [BOX], "scores": [1, 2]},
            r"the scores have shape \(2,\); expected \[1\], one per predicted box",
        ),
        ({"record": 0, "boxes": [BOX], "scores": ["high"]}, r"the scores are not numbers .*'high'"),
        ({"record": 0, "masks": [RUNS], "scores": [90]}, "the scores include 90; expected 0 to 1"),
        (
            {"record": 0, "boxes": [[0.2, 0.25, 0.5, 0.75]]},
            "all boxes look normalized to 0..1; expected pixels of the pictures",
        ),
        ({"record": 0, "boxes": [[10, 10, 5, 5]]}, "not width and height"),
        ({"record": 0, "boxes": [BOX], "masks": []}, "0 masks for 1 boxes"),
        ({"record": 0, "mask": encode_mask(MASK.T)}, "the RLE is of a picture of 40 x 60; expected 60 x 40"),
        ({"record": 0, "mask": {"size": [HEIGHT, WIDTH], "counts": "zz"}}, "expected COCO's compressed run lengths"),
        ({"record": 0, "mask": {"size": [HEIGHT, WIDTH], "counts": 5}}, r"a mask\.counts is 5; expected a string"),
        ({"record": 0, "mask": [[1, 2, 3]]}, "the polygons cannot be drawn"),
        ({"record": 0, "masks": [None]}, "a mask is missing or null"),
        ({"record": 0, "bbox": [1, 2, 3]}, r"bbox is \[1, 2, 3\]; expected x, y, width, height"),
        ({"record": 0, **WHOLE}, r"2 of the 3 records of 'val' have no prediction, such as record 1 \(val\[1\]\)"),
    ],
)
def test_what_is_refused(tmp_path, opened, prediction, says):
    with pytest.raises(InputError, match=says) as caught:
        score(tmp_path / "p.jsonl", opened, prediction)
    assert "p.jsonl" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "the end is missing, as in an incomplete download.; expected a JSON list or one JSON object per line"),
        ("[", "expected a JSON list or one JSON object per line"),
        ("[1]", "entry 0: expected a JSON object per prediction"),
        ('{"record": 0, "no_target": true}\n{"record": 0, "no_target": true}', "2: a second prediction for record 0"),
    ],
)
def test_broken_files(tmp_path, opened, text, says):
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(InputError, match=says):
        score_predictions(tmp_path / "p.jsonl", opened[0], "val", opened[1])
    with pytest.raises(InputError, match="cannot be read"):
        score_predictions(tmp_path / "absent.jsonl", opened[0], "val", opened[1])
