"""The HTML report of an evaluation: headline numbers, galleries of answers, curves, and tables by kind of sentence."""

import json
import re
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from data_pipelines.splits import Description, Split
from instancevg_jax.answers.draw import Truth as Shown
from instancevg_jax.answers.draw import draw_grounding
from instancevg_jax.answers.explain import draw_explanation
from instancevg_jax.answers.grounding import Grounding
from instancevg_jax.config import Config
from instancevg_jax.evaluation.baselines import measure_baselines
from instancevg_jax.evaluation.evaluator import Evaluation, conditions
from instancevg_jax.evaluation.metrics import FAILED, TASKS, Row
from instancevg_jax.evaluation.page import (
    Bar,
    Bars,
    Gallery,
    Lines,
    Picture,
    Section,
    Table,
    Tile,
    Tiles,
    write_page,
)
from instancevg_jax.evaluation.sweep import SWEPT, best_thresholds
from instancevg_jax.objective.losses import LOSS_GROUPS

PICTURES = 12  # in each gallery
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
}


def write(
    path: Path,
    config: Config,
    evaluations: Sequence[Evaluation],
    sources: Mapping[str, Split],
    *,
    facts: Mapping[str, str],
    answer: Callable[[Sequence[tuple[np.ndarray, str]]], list[Grounding]] | None = None,
    training_log: Path | None = None,
) -> None:
    """Write the report.

    Args:
        path: the HTML file.
        config: of the evaluation.
        evaluations: one per split.
        sources: the opened splits by name.
        facts: lines of the head by name, such as the model, the date and the command.
        answer: pairs of picture and sentence -> groundings, for the galleries; None: no galleries.
        training_log: metrics.jsonl of the training run, for its curves, if it exists.
    """
    sections: list[Section] = [_tiles(evaluation, config) for evaluation in evaluations]
    if answer:
        for evaluation in evaluations:
            sections += _galleries(evaluation, sources[evaluation.split], config, answer)
    for evaluation in evaluations:
        sections += _details(evaluation, sources[evaluation.split], config)
    if training_log and training_log.is_file():
        sections.append(_training_curves(training_log))
    notes = (
        "All numbers are percentages. The official protocol and the network's pixels are what published numbers are measured "
        "with; see docs/evaluation.md. A dash means that there is nothing to measure.",
        "gIoU counts a no-target sentence as 100 if it is answered with nothing, so that always answering nothing scores the "
        "share of no-target sentences: compare each gIoU with that floor.",
        "sigmoid and softmax are two ways to decide whether a sentence has a target: from the first logit alone, as the "
        "original does at inference, or from both, as it is trained.",
        "The pictures show the answers of `predict`, which follow the strict protocol.",
    )
    title = f"{config.data.name}: {', '.join(evaluation.split for evaluation in evaluations)}"
    facts = {**facts, "Conditions": f"{conditions(config)}, merged mask: {config.eval.mask_merge}"}
    write_page(path, title, sections, facts=facts, meanings=MEANINGS, notes=notes)


def _tiles(evaluation: Evaluation, config: Config) -> Tiles:
    metrics, task = evaluation.metrics, TASKS[config.eval.task]
    floor = 100 * _mean(row.empty for row in evaluation.rows.values())
    notes = {"gIoU": f"always none: {floor:.1f}"}
    tiles = [Tile(name, _percent(metrics[name]) or "-", notes.get(name, "")) for name in task.tiles]
    count = len(evaluation.rows)
    return Tiles(evaluation.split, tiles, f"{count} records in {evaluation.seconds:.0f} s, {evaluation.rule} rule.")


def _details(evaluation: Evaluation, source: Split, config: Config) -> list[Section]:
    """Everything below the pictures."""
    sections: list[Section] = []
    if evaluation.sweep:
        sections += [_sweep_lines(evaluation, config), _sweep_table(evaluation, config)]
    described = {record: source.describe(record) for record in evaluation.rows}
    sections.append(_results(evaluation, measure_baselines(config.eval, source)))
    sizes = {record: _size(row, _pixels(config, described[record])) for record, row in evaluation.rows.items()}
    lengths = {record: _length(about.expression) for record, about in described.items()}
    groupings = {"size of the target": sizes, "length of the sentence": lengths}
    for name in dict.fromkeys(name for about in described.values() for name in about.tags):
        groupings[name] = {record: about.tags[name] for record, about in described.items() if name in about.tags}
    choices = {record: about.num_objects for record, about in described.items()}
    sections += [_by_group(evaluation, name, group, choices, config) for name, group in groupings.items()]
    if "template" in groupings:
        sections.append(_template_bars(evaluation, groupings["template"], config))
    return sections


def _training_curves(log: Path) -> Lines:
    """The loss and its groups over steps, from a run's metrics.jsonl."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    rows = [row for row in rows if row["group"] == "train" and row["loss"] is not None]
    names = ("loss", *LOSS_GROUPS)
    return Lines("training loss", "step", {name: [(row["step"], row[name]) for row in rows] for name in names})


def _sweep_table(evaluation: Evaluation, config: Config) -> Table:
    """The swept metrics at every threshold."""
    rows = []
    for threshold, result in evaluation.sweep.items():
        mark = " (configured)" if threshold == config.eval.score_threshold else ""
        rows.append([f"{threshold:g}{mark}", *(_percent(result[name]) for name in SWEPT)])
    best = ", ".join(f"{name} at {threshold:g}" for name, threshold in best_thresholds(evaluation.sweep).items())
    note = f"Best: {best}. {conditions(config, with_threshold=False)}."
    return Table(f"{evaluation.split}: by score threshold", ["score threshold", *SWEPT], rows, note)


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


def _results(evaluation: Evaluation, baselines: Mapping[str, Mapping[str, float]]) -> Table:
    """All metrics, under each rule, next to the baselines."""
    columns = {rule: measured.shown() for rule, measured in evaluation.by_rule.items()} | dict(baselines)
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
    return Table(f"{evaluation.split}: by {name}", header, rows)


def _template_bars(evaluation: Evaluation, template: Mapping[int, str], config: Config) -> Bars:
    score, bars = TASKS[config.eval.task].score, []
    for value in sorted(set(template.values())):
        rows = [evaluation.rows[record] for record, own in template.items() if own == value]
        bars.append(Bar(value, _mean(map(score, rows)), _mean(row.empty for row in rows)))
    return Bars(f"{evaluation.split}: mean score by template", bars, "always none")


def _pixels(config: Config, about: Description) -> int:
    """Size of the picture that the rows were measured in."""
    if config.eval.resolution == "network":
        return config.model.image_height * config.model.image_width
    return about.height * about.width


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


def _galleries(
    evaluation: Evaluation,
    source: Split,
    config: Config,
    answer: Callable[[Sequence[tuple[np.ndarray, str]]], list[Grounding]],
) -> list[Section]:
    """The best and the worst answers and false targets, with a different sentence in each picture of a gallery."""
    score = TASKS[config.eval.task].score
    scores = {record: score(row) for record, row in evaluation.rows.items()}
    ranked = sorted((record for record in scores if not np.isnan(scores[record])), key=lambda r: (scores[r], r))
    targeted = [record for record in ranked if not evaluation.rows[record].empty]
    empty = [record for record in ranked if evaluation.rows[record].empty]
    false = sorted((r for r in empty if scores[r] < FAILED), key=lambda r: -evaluation.rows[r].num_predictions)
    quarter = PICTURES // 4
    right = [record for record in reversed(empty) if scores[record] >= FAILED]
    best = [record for record in reversed(targeted) if scores[record] >= FAILED]
    worst = [record for record in targeted if scores[record] < FAILED]
    chosen = {
        "best answers": _distinct(best, source, PICTURES - quarter) + _distinct(right, source, quarter),
        "worst answers": _distinct(worst, source, PICTURES),
        "false targets": _distinct(false, source, PICTURES),
    }
    galleries = []
    for name, records in chosen.items():
        shown = [source.show(record) for record in records]
        groundings = answer([(s.picture, s.expression) for s in shown])
        pictures = [
            Picture(
                draw_grounding(s.picture, grounding, s.expression, Shown(s.boxes_xyxy, s.masks)),
                f"{s.expression} (record {record}, {_caption(evaluation.rows[record])})",
                _inside(s.picture, grounding, s.expression) if name != "best answers" else None,
            )
            for record, s, grounding in zip(records, shown, groundings, strict=True)
        ]
        galleries.append(Gallery(f"{evaluation.split}: {name}", pictures))
    return galleries


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
