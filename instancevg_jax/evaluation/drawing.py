"""Each answer of a split as a picture next to the annotation, written while the split is evaluated."""

from collections.abc import Callable
from pathlib import Path

from data_pipelines.splits import Split
from instancevg_jax.answers.draw import Truth, draw_grounding, write_picture
from instancevg_jax.answers.grounding import Grounding
from instancevg_jax.evaluation.metrics import FAILED, TASKS, Row


def drawer(folder: Path, source: Split, task: str, choice: str) -> Callable[[int, Grounding, Row], None]:
    """A function for `Evaluator`'s `on_answer` that draws a record into FOLDER/RECORD.jpg.

    `choice` is "all", or "failures" for the records whose score under the task's own rules is below `metrics.FAILED`.
    """

    def draw(record: int, grounding: Grounding, row: Row) -> None:
        if choice == "failures" and TASKS[task].score(row) >= FAILED:
            return
        shown = source.show(record)
        truth = Truth(shown.boxes_xyxy, shown.masks)
        picture = draw_grounding(shown.picture, grounding, shown.expression, truth)
        write_picture(folder / f"{record:06d}.jpg", picture)

    return draw
