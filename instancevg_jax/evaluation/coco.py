"""Answers in COCO's results format, in the pictures' own pixels: one entry per object of an answer. See docs/evaluation.md."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_pipelines.records import coco_number
from data_pipelines.splits import Description
from instancevg_jax.answers.grounding import Grounding, run_lengths
from instancevg_jax.files import write_atomically

CATEGORY = 1  # of every entry: expressions have no categories


def entries(grounding: Grounding, about: Description, record: int) -> list[dict[str, Any]]:
    """The entries of one sentence, best first; none if the answer is that there is no target."""
    objects = zip(grounding.boxes_xyxy.tolist(), grounding.scores.tolist(), grounding.masks, strict=True)
    return [
        {
            "image_id": image_id(about.file_name),
            "category_id": CATEGORY,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
            "segmentation": run_lengths(mask),
            "record": record,
            "record_id": about.id,
            "expression": about.expression,
            "target_ids": list(about.object_ids),
        }
        for (x1, y1, x2, y2), score, mask in objects
    ]


def image_id(file_name: str) -> int | str:
    """COCO's number of a picture (COCO_train2014_000000000009.jpg: 9); for any other file its full name, which is unique."""
    number = coco_number(file_name)
    return file_name if number is None else number


def write(path: Path, content: Iterable[dict[str, Any]]) -> None:
    """Write the entries, sorted by record, as JSON with one entry per line. Atomic."""
    lines = map(json.dumps, sorted(content, key=lambda entry: entry["record"]))
    write_atomically(path, ("[\n" + ",\n".join(lines) + "\n]\n").encode())
