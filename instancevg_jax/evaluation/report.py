"""The HTML report of an evaluation: headline numbers, galleries of answers, curves, and tables by kind of sentence."""

import json
import re
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from data_pipelines.splits import Description, Sample, Split
from instancevg_jax.answers.draw import TrueObjects, draw_answer, draw_truth
from instancevg_jax.answers.explain import draw_explanation
from instancevg_jax.answers.grounding import Grounding
from instancevg_jax.config import Config
from instancevg_jax.evaluation.baselines import measure_baselines
from instancevg_jax.evaluation.evaluator import Evaluation, conditions
from instancevg_jax.evaluation.measured import Measured
from instancevg_jax.evaluation.metrics import FAILED, TASKS, Row
from instancevg_jax.evaluation.outputs import describe_data
from instancevg_jax.evaluation.page import (
    Bar,
    Bars,
    Figure,
    Gallery,
    Lines,
    Section,
    Table,
    Tile,
    Tiles,
    write_page,
)
from instancevg_jax.evaluation.sweep import SWEPT, best_thresholds
from instancevg_jax.objective.losses import LOSS_GROUPS

PICTURES = 12  # in each gallery
MANY = 12  # groups; a longer table is folded
INSIDE_WIDTH = 800  # pixels of a look inside at most
SIZES = (0.01, 0.05, 0.2)  # bounds of the groups by size: share of the picture that the target covers
LENGTHS = (3, 5, 8)  # bounds of the groups by length: words of the sentence
MEANINGS = {
    "gIoU": "Mean IoU over sentences. A no-target sentence counts 100 if it is answered with nothing, else 0.",
    "cIoU": "Sum of all intersections over the sum of all unions, in pixels: large objects count more.",
    "F1": "Share of sentences where every predicted box matches a true box and every true box is found.",
    "N_acc": "Share of the no-target sentences that are answered with nothing.",
    "T_acc": "Share of the sentences with a target that are answered with something.",
    "gres_N_acc": "N_acc as GRES counts it: no score above the threshold.",
    "gres_T_acc": "T_acc as GRES counts it: a score above the threshold.",
    "mIoU": "Mean IoU of the merged mask over sentences with a target (R-RefCOCO: over groups of sentences).",
    "oIoU": "Sum of all intersections over the sum of all unions, for sentences with a target.",
    "rIoU": "IoU per group of sentences, where masks for no-target sentences enlarge the union; then the mean over groups.",
    "mRR": "Share of a group's no-target sentences that are answered with nothing; then the mean over groups.",
    "Acc": "Share of the no-target sentences that are answered with nothing.",
    "REC": "Share of the sentences with exactly one target where the box of the best score has an IoU of 0.5 or more.",
    "coverage": "Share of the true boxes that contain one of the selected points.",
    **{f"Pr@{x}": f"Share of the sentences with a mask IoU of {x} or more." for x in (0.5, 0.6, 0.7, 0.8, 0.9)},
    **{f"MaskACC@{x}": f"Share of the sentences with a mask IoU of {x} or more." for x in (0.5, 0.6, 0.7, 0.8, 0.9)},
    **{
        f"DetACC@{x}": f"Share of the sentences whose best box has an IoU of {x} or more."
        for x in (0.5, 0.6, 0.7, 0.8, 0.9)
    },
    "always none": "The same metric if every sentence were answered with nothing.",
    "random": "REC of a box drawn at random from the objects of the picture.",
    "a random object": "A baseline that answers with the box of a random object of the picture.",
    "language only": "A baseline that knows the sentence but not the picture.",
    "colour words only": "A baseline that sees the true objects but understands only the colour words of the sentence.",
    "sigmoid": "Whether a sentence has a target is decided from the first logit alone, as the original does at inference.",
    "softmax": "Whether a sentence has a target is decided from both logits, as the original is trained.",
}


def write(path: Path, models: Sequence[Measured], *, facts: Mapping[str, str]) -> None:
    """Write the report.

    Args:
        path: the HTML file.
        models: the model that the report is about; a second one is shown next to it.
        facts: further lines of the head by name, such as the date and the command.
    """
    first, other = models[0], models[1] if len(models) > 1 else None
    sections: list[Section] = [_tiles(first, split, other) for split in first.sources]
    for split in first.sources:
        sections += _galleries(first, split, other)
    for split in first.sources:
        sections += _details(first, split, other)
    log = Path(first.origin).parent / "metrics.jsonl"
    if first.answer and log.is_file():
        sections.append(_training_curves(log))
    if len(first.sources) == 1:  # its name is in the head
        (split,) = first.sources
        titles = (section.title.removeprefix(f"{split}: ") for section in sections)
        sections = [replace(section, title=title.capitalize()) for section, title in zip(sections, titles, strict=True)]
    data = describe_data(first.config)
    notes = dict.fromkeys(note for measured in models for note in measured.notes)
    records = ", ".join(f"{e.split} ({len(e.rows)} records)" for e in first.evaluations)
    head = {
        "Model" if first.answer else "Predictions": _described(first),
        **({"Compared with": _described(other)} if other else {}),
        "Data": f"{data}: {records}",
        "Conditions": f"{conditions(first.config)}, merged mask: {first.config.eval.mask_merge}",
        **{name: _short(value) for name, value in facts.items()},
        **({"Note": "; ".join(notes)} if notes else {}),
    }
    title = f"{first.name} on {data}"
    write_page(path, title, sections, facts=head, meanings=MEANINGS, notes=_notes(first, other))


def _notes(first: Measured, other: Measured | None) -> list[str]:
    notes = [
        "All numbers are percentages. The official protocol and the network's pixels are what published numbers are measured "
        "with; see docs/evaluation.md. A dash means that there is nothing to measure.",
        "gIoU counts a no-target sentence as 100 if it is answered with nothing, so that always answering nothing scores the "
        "share of no-target sentences: compare each gIoU with that floor.",
        "The pictures show the answers of `predict`, which follow the strict protocol.",
    ]
    if other and first.size != other.size and first.config.eval.resolution == "network":
        notes.append("Each model is compared with the truth at its own picture size.")
    return notes


def _described(measured: Measured) -> str:
    return ", ".join(filter(None, (_short(measured.origin), measured.size)))


def _short(path: str) -> str:
    """A path below the working directory relative to it; other text as it is."""
    return path.removeprefix(f"{Path.cwd()}/")


def _evaluation(measured: Measured, split: str) -> Evaluation:
    return next(evaluation for evaluation in measured.evaluations if evaluation.split == split)


def _tiles(first: Measured, split: str, other: Measured | None) -> Tiles:
    """The task's headline metrics, each above the second model's."""
    evaluation, task = _evaluation(first, split), TASKS[first.config.eval.task]
    floor = 100 * _mean(row.empty for row in evaluation.rows.values())
    notes = {"gIoU": f"always none: {floor:.1f}"}
    if other:
        metrics = _evaluation(other, split).metrics
        notes = {name: f"{other.name}: {_percent(metrics[name]) or '-'}" for name in task.tiles}
    tiles = [Tile(name, _percent(evaluation.metrics[name]) or "-", notes.get(name, "")) for name in task.tiles]
    count = len(evaluation.rows)
    return Tiles(
        f"{split}: headline metrics",
        tiles,
        f"{count} records in {evaluation.seconds:.0f} s, {evaluation.rule} rule. Percent.",
    )


def _details(first: Measured, split: str, other: Measured | None) -> list[Section]:
    """Everything below the pictures."""
    evaluation, source, config = _evaluation(first, split), first.sources[split], first.config
    sections: list[Section] = []
    if evaluation.sweep:
        sections += [_sweep_lines(evaluation, config), _sweep_table(evaluation, config)]
    descriptions = {record: source.describe(record) for record in evaluation.rows}
    compared = {other.name: _evaluation(other, split).metrics} if other else {}
    sections.append(_results(evaluation, compared | measure_baselines(config.eval, source)))
    sizes = {record: _size(row, _pixels(config, descriptions[record])) for record, row in evaluation.rows.items()}
    lengths = {record: _length(description.expression) for record, description in descriptions.items()}
    groupings = {"size of the target": sizes, "length of the sentence": lengths}
    tags = {record: description.tags for record, description in descriptions.items()}
    for name in dict.fromkeys(name for own in tags.values() for name in own):
        groupings[name] = {record: own[name] for record, own in tags.items() if name in own}
    choices = {record: description.num_objects for record, description in descriptions.items()}
    sections += [_by_group(evaluation, name, group, choices, config) for name, group in groupings.items()]
    if "template" in groupings:
        sections.append(_template_bars(evaluation, groupings["template"], config))
    return sections


def _training_curves(log: Path) -> Lines:
    """The loss and its groups over steps, from a run's metrics.jsonl."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    rows = [row for row in rows if row["group"] == "train" and row["loss"] is not None]
    names = ("loss", *LOSS_GROUPS)
    return Lines("Training loss", "step", {name: [(row["step"], row[name]) for row in rows] for name in names})


def _sweep_table(evaluation: Evaluation, config: Config) -> Table:
    """The swept metrics at every threshold."""
    rows = []
    for threshold, result in evaluation.sweep.items():
        mark = " (configured)" if threshold == config.eval.score_threshold else ""
        rows.append([f"{threshold:g}{mark}", *(_percent(result[name]) for name in SWEPT)])
    best = ", ".join(f"{name} at {threshold:g}" for name, threshold in best_thresholds(evaluation.sweep).items())
    note = f"Best: {best} ({conditions(config, with_threshold=False)})."
    title = f"{evaluation.split}: by score threshold"
    return Table(title, ["score threshold", *SWEPT], rows, note, folded="All thresholds")


def _sweep_lines(evaluation: Evaluation, config: Config) -> Lines:
    """The same as curves."""
    series = {name: [(at, result[name]) for at, result in evaluation.sweep.items()] for name in SWEPT}
    return Lines(
        f"{evaluation.split}: percent over score thresholds",
        "score threshold",
        series,
        "A higher threshold gives fewer false targets (N_acc) and more missed ones (T_acc).",
        config.eval.score_threshold,
        "configured threshold",
    )


def _results(evaluation: Evaluation, others: Mapping[str, Mapping[str, float]]) -> Table:
    """All metrics, under each rule, next to the second model and the baselines."""
    columns = {rule: measured.shown() for rule, measured in evaluation.by_rule.items()} | dict(others)
    rows = [[name, *(_percent(column.get(name)) for column in columns.values())] for name in evaluation.metrics]
    return Table(f"{evaluation.split}: all metrics", ["metric", *columns], rows)


def _by_group(
    evaluation: Evaluation, name: str, group: Mapping[int, str], choices: Mapping[int, int], config: Config
) -> Table:
    """The task's headline metrics and REC of each group of records; the chance of REC where the data set knows it."""
    shown = [*TASKS[config.eval.task].tiles, "REC"]
    rows = []
    for value in sorted(set(group.values()), key=_in_order):
        records = [record for record, own in group.items() if own == value]
        metrics = evaluation.measured.subset(records).shown()
        floor = 100 * _mean(evaluation.rows[record].empty for record in records)
        odds = [100 / choices[r] for r in records if evaluation.rows[r].num_targets == 1 and choices[r]]
        rows.append(
            [
                value,
                len(records),
                *(_percent(metrics[metric]) for metric in shown),
                _percent(floor),
                _percent(_mean(odds)),
            ]
        )
    header = [name, "records", *shown, "always none", "random"]
    folded = f"All {len(rows)} groups" if len(rows) > MANY else ""
    return Table(f"{evaluation.split}: by {name}", header, rows, folded=folded)


def _template_bars(evaluation: Evaluation, template: Mapping[int, str], config: Config) -> Bars:
    score, bars = TASKS[config.eval.task].score, []
    for value in sorted(set(template.values())):
        rows = [evaluation.rows[record] for record, own in template.items() if own == value]
        bars.append(Bar(value, _mean(map(score, rows)), _mean(row.empty for row in rows)))
    return Bars(f"{evaluation.split}: mean score by template", bars, "always none")


def _pixels(config: Config, description: Description) -> int:
    """Size of the picture that the rows were measured in."""
    if config.eval.resolution == "network":
        return config.model.image_height * config.model.image_width
    return description.height * description.width


def _size(row: Row, pixels: int) -> str:
    target = (row.union + row.intersection - row.predicted_area) / pixels
    if row.empty or np.isnan(target):
        return "no target"
    low, high = (0.0, *SIZES)[bisect_right(SIZES, target)], (*SIZES, 1.0)[bisect_right(SIZES, target)]
    return f"{100 * low:.0f} to {100 * high:.0f} % of the picture"


def _length(expression: str) -> str:
    words, bounds = len(expression.split()), (1, *LENGTHS)
    place = bisect_right(LENGTHS, words)
    return (
        f"{bounds[place]} words or more"
        if place == len(LENGTHS)
        else f"{bounds[place]} to {bounds[place + 1] - 1} words"
    )


def _in_order(name: str) -> tuple[list[int], str]:
    """Sorts by the numbers in a name, and names without any last."""
    return [int(number) for number in re.findall(r"\d+", name)] or [sys.maxsize], name


def _percent(value: float | None) -> str | None:
    return None if value is None or np.isnan(value) else f"{value:.1f}"


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return float(np.mean(values)) if values else float("nan")


def _galleries(first: Measured, split: str, other: Measured | None) -> list[Section]:
    """The best and the worst answers and false targets, with a different sentence in each picture of a gallery."""
    if not first.answer:
        return []
    evaluation, source = _evaluation(first, split), first.sources[split]
    titles = {
        "best answers": "Correct answers with the highest scores.",
        "worst answers": "Sentences with a target: first those answered with wrong objects, then those answered with nothing.",
        "false targets": "Sentences without a target that are answered with one.",
    }
    galleries = []
    for name, records in _chosen(evaluation, source, TASKS[first.config.eval.task].score).items():
        columns = [_ask(measured, split, records) for measured in (first, other) if measured]
        pictures = [
            _picture(f"record {record}: {_caption(evaluation.rows[record])}", answers, name != "best answers")
            for record, *answers in zip(records, *columns, strict=True)
        ]
        note = f"{titles[name]} White outline: only in the merged mask. Select a picture to enlarge it."
        galleries.append(Gallery(f"{split}: {name}", pictures, note))
    return galleries


def _chosen(evaluation: Evaluation, source: Split, score: Callable[[Row], float]) -> dict[str, list[int]]:
    """The records of each gallery."""
    scores = {record: score(row) for record, row in evaluation.rows.items()}
    ranked = sorted((record for record in scores if not np.isnan(scores[record])), key=lambda r: (scores[r], r))
    targeted = [record for record in ranked if not evaluation.rows[record].empty]
    empty = [record for record in ranked if evaluation.rows[record].empty]
    false = sorted((r for r in empty if scores[r] < FAILED), key=lambda r: -evaluation.rows[r].num_predictions)
    quarter = PICTURES // 4
    right = [record for record in reversed(empty) if scores[record] >= FAILED]
    best = [record for record in reversed(targeted) if scores[record] >= FAILED]
    wrong = [record for record in targeted if scores[record] < FAILED and not evaluation.rows[record].says_none]
    missed = [record for record in targeted if scores[record] < FAILED and evaluation.rows[record].says_none]
    return {
        "best answers": _distinct(best, source, PICTURES - quarter) + _distinct(right, source, quarter),
        "worst answers": _distinct(wrong, source, PICTURES - quarter) + _distinct(missed, source, quarter),
        "false targets": _distinct(false, source, PICTURES),
    }


@dataclass(frozen=True)
class _ModelAnswer:
    """A record as one model sees it, and its answer."""

    model: str
    shown: Sample
    grounding: Grounding

    @property
    def truth(self) -> TrueObjects:
        return TrueObjects(self.shown.boxes_xyxy, self.shown.masks)


def _ask(measured: Measured, split: str, records: Sequence[int]) -> list[_ModelAnswer]:
    shown = [measured.sources[split].show(record) for record in records]
    assert measured.answer
    groundings = measured.answer([(s.picture, s.expression) for s in shown])
    return [_ModelAnswer(measured.name, s, grounding) for s, grounding in zip(shown, groundings, strict=True)]


def _picture(detail: str, answers: Sequence[_ModelAnswer], with_inside: bool) -> Figure:
    """Each model's answer, and the truth."""
    first = answers[0]
    panels = [
        (
            answer.model if len(answers) > 1 else "prediction",
            draw_answer(answer.shown.picture, answer.grounding, truth=answer.truth),
        )
        for answer in answers
    ]
    panels.append(("ground truth", draw_truth(first.shown.picture, first.truth)))
    expression = first.shown.expression
    inside = _inside(first.shown.picture, first.grounding, expression) if with_inside else None
    return Figure(panels, expression, detail, inside)


def _inside(picture: np.ndarray, grounding: Grounding, expression: str) -> np.ndarray | None:
    """Attention maps and all queries of a wrong answer, for a look at its cause."""
    if grounding.evidence is None:
        return None
    drawn = draw_explanation(picture, grounding, expression)
    scale = min(1.0, INSIDE_WIDTH / drawn.shape[1])
    return cv2.resize(drawn, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def _caption(row: Row) -> str:
    if row.empty:
        return "no target, answered with nothing" if row.says_none else "no target, answered with a target"
    box = f", IoU of the best box {row.best_box_iou:.2f}" if row.num_targets == 1 else ""
    missed = ", answered with nothing" if row.says_none else ""
    return f"mask IoU {row.iou:.2f}{box}{missed}"


def _distinct(records: Iterable[int], source: Split, count: int) -> list[int]:
    seen: dict[str, int] = {}
    for record in records:
        seen.setdefault(source.describe(record).expression, record)
        if len(seen) == count:
            break
    return list(seen.values())
