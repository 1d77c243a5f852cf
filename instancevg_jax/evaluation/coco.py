"""Answers in COCO's results format, in the pictures' own pixels: one entry per object of an answer. See docs/evaluation.md."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_pipelines.records import coco_number
from data_pipelines.splits import Description, Split
from instancevg_jax.answers.grounding import Grounding
from instancevg_jax.evaluation.evaluator import of_all
from instancevg_jax.evaluation.metrics import Row
from instancevg_jax.files import write_atomically
from instancevg_jax.runtime import sharding


class Collector:
    """Collects the entries of a split, for `Evaluator`'s `on_answer`."""

    def __init__(self, source: Split) -> None:
        self._source = source
        self._entries: list[dict[str, Any]] = []

    def __call__(self, record: int, grounding: Grounding, row: Row) -> None:
        """Add the entries of one record."""
        del row
        self._entries += entries(grounding, self._source.describe(record), record)

    def write(self, path: Path) -> None:
        """Write the entries of all processes, on the first one."""
        parts = of_all("".join(json.dumps(entry) + "\n" for entry in self._entries).encode())
        if sharding.is_first_process():
            write(path, [json.loads(line) for part in parts for line in part.splitlines()])


def entries(grounding: Grounding, description: Description, record: int) -> list[dict[str, Any]]:
    """`Grounding.to_coco` for one sentence, with the record, its sentence and its targets in every entry."""
    more = {
        "record": record,
        "record_id": description.id,
        "expression": description.expression,
        "target_ids": list(description.object_ids),
    }
    return [{**entry, **more} for entry in grounding.to_coco(image_id(description.file_name))]


def image_id(file_name: str) -> int | str:
    """COCO's number of a picture (COCO_train2014_000000000009.jpg: 9); for any other file its full name, which is unique."""
    number = coco_number(file_name)
    return file_name if number is None else number


def write(path: Path, content: Iterable[dict[str, Any]]) -> None:
    """Write the entries, sorted by record, as JSON with one entry per line. Atomic."""
    lines = map(json.dumps, sorted(content, key=lambda entry: entry["record"]))
    write_atomically(path, ("[\n" + ",\n".join(lines) + "\n]\n").encode())
