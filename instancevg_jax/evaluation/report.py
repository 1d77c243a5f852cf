"""report.html of an evaluation: results under both decision rules, by kind of sentence, beside baselines, and pictures."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from data_pipelines import splits
from instancevg_jax.answers.draw import Truth as Shown
from instancevg_jax.answers.draw import draw_grounding
from instancevg_jax.answers.predictor import Predictor
from instancevg_jax.config import Config
from instancevg_jax.evaluation.evaluator import RULES, Evaluation, conditions
from instancevg_jax.evaluation.metrics import Answer, Metrics, Row, Truth
from instancevg_jax.evaluation.page import Bar, Bars, Cell, Gallery, Lines, Picture, Table, write_report
from instancevg_jax.evaluation.sweep import SWEPT, best_thresholds
from instancevg_jax.inputs.tokenizer import Tokenizer
from instancevg_jax.models.instancevg import InstanceVG

PICTURES = 12  # in each gallery
CHOSEN = ("gIoU", "cIoU", "F1", "REC", "N_acc", "T_acc", "mIoU", "oIoU", "DetACC@0.5", "mRR", "rIoU", "Acc")


def write(
    path: Path,
    model: InstanceVG,
    config: Config,
    tokenizer: Tokenizer,
    evaluations: Sequence[Evaluation],
    checkpoint: Path,
) -> None:
    """Write the report of `evaluations` to `path`; with the curves of the training, where they lie beside the checkpoint."""
    predictor = Predictor.from_model(model, config, tokenizer)
    tables: list[Table] = []
    plots: list[Lines | Bars] = _training_curves(checkpoint.parent / "metrics.jsonl")
    galleries: list[Gallery] = []
    for evaluation in evaluations:
        source = splits.open_split(config, evaluation.split, tokenizer, length=config.data.num_eval_examples)
        tables.append(_results(evaluation, _baselines(config, source), config))
        described = {record: source.describe(record) for record in evaluation.rows}
        choices = {record: about.num_objects for record, about in described.items()}
        for name in dict.fromkeys(name for about in described.values() for name in about.tags):
            group = {record: about.tags[name] for record, about in described.items() if name in about.tags}
            tables.append(_by_tag(evaluation, name, group, choices))
            if name == "template":
                plots.append(_template_bars(evaluation, group))
        if evaluation.sweep:
            tables.append(_sweep_table(evaluation, config))
            plots.append(_sweep_lines(evaluation, config))
        galleries += _galleries(evaluation, source, predictor)
    notes = (
        f"Checkpoint: {checkpoint}. Measured under: {conditions(config)}. Merged mask: {config.eval.mask_merge}.",
        "The official protocol and the network's pixels are what the original compares with; see docs/evaluation.md. The "
        "pictures show the answers as predict gives them, by the strict protocol.",
        "gIoU counts an empty sentence as 1 if it is answered with nothing and as 0 otherwise, so answering nothing "
        "always scores the share of empty sentences: read every gIoU beside that floor.",
        "sigmoid and softmax are two ways to read off whether anything is meant: of the first logit alone, as the "
        "original does at inference, or over both, as it trains them.",
    )
    title = f"{config.data.name}: {', '.join(evaluation.split for evaluation in evaluations)}"
    write_report(path, title, tables, plots, galleries, notes)


def _training_curves(log: Path) -> list[Lines | Bars]:
    """The loss and its groups over steps, from a run's metrics.jsonl; nothing if there is none."""
    if not log.is_file():
        return []
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    rows = [row for row in rows if row["group"] == "train" and row["loss"] is not None]
    names = ("loss", "detection", "masks", "no_target")
    return [Lines("training loss", "step", {name: [(row["step"], row[name]) for row in rows] for name in names})]


def _sweep_table(evaluation: Evaluation, config: Config) -> Table:
    """The swept metrics at every threshold."""
    rows = []
    for threshold, result in evaluation.sweep.items():
        mark = ", the config's" if threshold == config.eval.score_threshold else ""
        rows.append([f"{threshold:g}{mark}", *(_cell(result[name]) for name in SWEPT)])
    best = ", ".join(f"{name} at {threshold:g}" for name, threshold in best_thresholds(evaluation.sweep).items())
    note = f"Best: {best}. {conditions(config, with_threshold=False)}."
    return Table(f"{evaluation.split}: over score thresholds", ["score threshold", *SWEPT], rows, note)


def _sweep_lines(evaluation: Evaluation, config: Config) -> Lines:
    """The same as curves. N_acc rises with the threshold: fewer false targets; T_acc falls: more missed ones."""
    series = {name: [(at, result[name]) for at, result in evaluation.sweep.items()] for name in SWEPT}
    return Lines(
        f"{evaluation.split}: percent over score thresholds",
        "score threshold",
        series,
        "A higher threshold gives fewer false targets (N_acc) and more missed ones (T_acc).",
        config.eval.score_threshold,
        "the config's threshold",
    )


def _results(evaluation: Evaluation, baselines: dict[str, dict[str, float]], config: Config) -> Table:
    """Both rules and the baselines under one header."""
    names = [name for name in CHOSEN if name in evaluation.metrics]
    rows = {f"model, {rule}": evaluation.by_rule[rule] for rule in RULES} | baselines
    cells = [[label, *(_cell(metrics.get(name)) for name in names)] for label, metrics in rows.items()]
    note = f"{len(evaluation.rows)} records in {evaluation.seconds:.0f} s; all numbers are percentages. {conditions(config)}."
    return Table(f"{evaluation.split}: results", ["", *names], cells, note)


def _cell(value: float | None) -> Cell:
    return None if value is None or np.isnan(value) else f"{value:.1f}"


def _by_tag(evaluation: Evaluation, name: str, group: dict[int, str], num_objects: dict[int, int]) -> Table:
    """gIoU with its floor, and REC with its chance where that is known, for every value of a tag."""
    rows = []
    for value in sorted(set(group.values())):
        records = [record for record, tag in group.items() if tag == value]
        chosen = [evaluation.rows[record] for record in records]
        single = [row for row in chosen if row["num_targets"] == 1]
        odds = [100 / num_objects[int(row["record"])] for row in single if num_objects[int(row["record"])]]
        rows.append(
            [
                value,
                len(chosen),
                _cell(_mean(_record_giou(row) for row in chosen)),
                _cell(_mean(100 * row["empty"] for row in chosen)),
                len(single),
                _cell(_mean(100.0 * (row["best_box_iou"] >= 0.5) for row in single)),
                _cell(_mean(odds)),
            ]
        )
    header = [name, "records", "gIoU", "always none", "of one object", "REC", "a random object"]
    return Table(f"{evaluation.split}: by {name}", header, rows)


def _template_bars(evaluation: Evaluation, template: dict[int, str]) -> Bars:
    bars = []
    for value in sorted(set(template.values())):
        rows = [evaluation.rows[record] for record, tag in template.items() if tag == value]
        score, floor = _mean(_record_giou(row) for row in rows), _mean(row["empty"] for row in rows)
        bars.append(Bar(value, score / 100, floor))
    return Bars(f"{evaluation.split}: gIoU by template", bars, "answering nothing, always")


def _record_giou(row: Row) -> float:
    """What the record adds to gIoU, in percent."""
    if row["empty"]:
        return 100 * row["says_none"]
    return 100 * row["iou"] * (1 - row["says_none"])


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return float(np.mean(values)) if values else float("nan")


def _galleries(evaluation: Evaluation, source: splits.Split, predictor: Predictor) -> list[Gallery]:
    """The best and the worst answers, spread over the sentences: never the same one twice."""
    ranked = sorted(evaluation.rows, key=lambda record: (_record_giou(evaluation.rows[record]), record))
    meant = [record for record in ranked if not evaluation.rows[record]["empty"]]
    none = [record for record in ranked if evaluation.rows[record]["empty"]]
    half = PICTURES // 4
    good = _distinct(reversed(meant), source, PICTURES - half) + _distinct(reversed(none), source, half)
    bad = _distinct(meant, source, PICTURES - half) + _distinct(none, source, half)
    good = [record for record in good if _record_giou(evaluation.rows[record]) >= 50]
    bad = [record for record in bad if _record_giou(evaluation.rows[record]) < 50]
    return [
        Gallery(f"{evaluation.split}: successes", _pictures(good, evaluation, source, predictor)),
        Gallery(f"{evaluation.split}: failures", _pictures(bad, evaluation, source, predictor)),
    ]


def _distinct(records: Iterable[int], source: splits.Split, count: int) -> list[int]:
    seen: dict[str, int] = {}
    for record in records:
        seen.setdefault(source.describe(record).expression, record)
        if len(seen) == count:
            break
    return list(seen.values())


def _pictures(
    records: Sequence[int], evaluation: Evaluation, source: splits.Split, predictor: Predictor
) -> list[Picture]:
    shown = [source.show(record) for record in records]
    groundings = predictor.predict_batch([s.picture for s in shown], [s.expression for s in shown])
    return [
        Picture(
            draw_grounding(s.picture, grounding, s.expression, Shown(s.boxes_xyxy, s.masks)),
            f"record {record}, {_record_giou(evaluation.rows[record]):.0f} % of its gIoU",
        )
        for record, s, grounding in zip(records, shown, groundings, strict=True)
    ]


def _baselines(config: Config, source: splits.Split) -> dict[str, dict[str, float]]:
    """Scores, by the same metrics, of answers that need no model; {} for data sets without baselines."""
    settings, chance = config.eval, []
    metrics: dict[str, Metrics] = {}
    for record in range(len(source)):
        guesses = source.guesses(record)
        if not guesses:
            return {}
        boxes, mask = source.truth(record)
        for name, guess in guesses.items():
            if name not in metrics:
                metrics[name] = Metrics(settings.task, settings.score_threshold, settings.protocol)
            answer = Answer(guess.boxes_xyxy, np.ones(len(guess.boxes_xyxy), np.float32), guess.mask, np.zeros((0, 2)))
            metrics[name].update(answer, Truth(boxes, mask, not len(boxes)), record)
        if len(boxes) == 1:
            chance.append(100 / source.describe(record).num_objects)
    return {name: m.result() for name, m in metrics.items()} | {"a random object": {"REC": _mean(chance)}}
