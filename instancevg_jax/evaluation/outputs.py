"""The numbers of an evaluation on the console and in metrics.json."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instancevg_jax.config import Config
from instancevg_jax.evaluation.evaluator import Evaluation, conditions
from instancevg_jax.evaluation.measured import Measured
from instancevg_jax.evaluation.sweep import SWEPT, best_thresholds
from instancevg_jax.files import write_atomically


def describe_data(config: Config) -> str:
    """The data set; for the embedded data also its level, on which all numbers depend."""
    return f"shapes, level {config.data.shapes_level}" if config.data.name == "shapes" else config.data.name


def print_results(models: Sequence[Measured], settings: str) -> None:
    """The conditions and one row per split of each model, followed by the sweeps. `settings`: where data and eval come from."""
    print(f"data: {describe_data(models[0].config)}; settings: {settings}")
    for measured in models:
        prefix = f"{measured.name}: " if len(models) > 1 else ""
        print(prefix + conditions(measured.config))
        print_table(measured.evaluations)
    for measured in models:
        for evaluation in measured.evaluations:
            if evaluation.sweep:
                print_sweep(evaluation, measured.config)


def print_table(evaluations: Sequence[Evaluation]) -> None:
    """The names of the metrics, then one row per split."""
    metrics = [evaluation.metrics for evaluation in evaluations]
    widths = {name: max(8, len(name)) + 2 for name in metrics[0]}
    first = max(len(evaluation.split) for evaluation in evaluations)
    print("".ljust(first) + "".join(name.rjust(width) for name, width in widths.items()))
    for evaluation, values in zip(evaluations, metrics, strict=True):
        cells = (_cell(values[name], width) for name, width in widths.items())
        print(evaluation.split.ljust(first) + "".join(cells))


def print_sweep(evaluation: Evaluation, config: Config) -> None:
    """One row per score threshold, with an arrow at the configured one, and below which is best for each metric."""
    print(f"\n{evaluation.split}: {conditions(config, with_threshold=False)}")
    print("  threshold" + "".join(name.rjust(11) for name in SWEPT))
    for threshold, result in evaluation.sweep.items():
        mark = "->" if threshold == config.eval.score_threshold else "  "
        print(mark + f"{threshold:9g}" + "".join(_cell(result[name], 11) for name in SWEPT))
    print("best: " + ", ".join(f"{name} at {at:g}" for name, at in best_thresholds(evaluation.sweep).items()))


def _cell(value: float, width: int) -> str:
    return "-".rjust(width) if np.isnan(value) else f"{value:{width}.2f}"


def write_metrics(path: Path, models: Sequence[Measured]) -> None:
    """metrics.json: every number under each rule, as the protocol defines it, and the settings. NaN is written as null.

    The first of `models` is the content; a second one is under `compared`.
    """
    first, *others = models
    config = first.config
    content: dict[str, Any] = {
        "checkpoint": first.origin,
        "eval": dataclasses.asdict(config.eval),
        "data": dataclasses.asdict(config.data),
        "splits": _splits(first),
    }
    for other in others:
        content["compared"] = {"checkpoint": other.origin, "splits": _splits(other)}
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def _splits(measured: Measured) -> dict[str, Any]:
    settings = measured.config.eval
    return {
        evaluation.split: {
            "records": len(evaluation.rows),
            "seconds": round(evaluation.seconds, 2),
            "rule": evaluation.rule,
            "protocol": settings.protocol,
            "resolution": settings.resolution,
            "by_rule": {rule: _values(metrics.result()) for rule, metrics in evaluation.by_rule.items()},
            "undefined": [name for name, value in evaluation.metrics.items() if np.isnan(value)],
            **_sweep(evaluation),
        }
        for evaluation in measured.evaluations
    }


def _values(metrics: dict[str, float]) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else value for name, value in metrics.items()}


def _sweep(evaluation: Evaluation) -> dict[str, Any]:
    if not evaluation.sweep:
        return {}
    rows = [{"score_threshold": at, **_values(metrics)} for at, metrics in evaluation.sweep.items()]
    return {"sweep": rows, "best_threshold": best_thresholds(evaluation.sweep)}
