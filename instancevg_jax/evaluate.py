"""Measure a model on the splits of a config: python -m instancevg_jax.evaluate --config configs/NAME.py --checkpoint DIR

The network's sizes come from the checkpoint, data and evaluation settings from the config. With --output DIR it leaves
metrics.json and report.html there (pictures of successes and failures, results by kind of sentence). What is compared, and how:
--config.eval.protocol official or strict, --config.eval.resolution network or original.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instancevg_jax import checkpoint
from instancevg_jax.config import Config
from instancevg_jax.errors import InputError, run_command
from instancevg_jax.evaluation import report
from instancevg_jax.evaluation.coco import write as write_coco
from instancevg_jax.evaluation.evaluator import Evaluation, Evaluator, conditions, open_eval_split
from instancevg_jax.evaluation.sweep import SWEPT, best_thresholds
from instancevg_jax.files import write_atomically
from instancevg_jax.runtime import command_line, sharding


def print_table(evaluations: Sequence[Evaluation], config: Config) -> None:
    """One row a split, under the config's rule; above it, what was measured how."""
    print(conditions(config))
    widths = {name: max(8, len(name)) + 2 for name in evaluations[0].metrics}
    first = max(len(evaluation.split) for evaluation in evaluations)
    print("".ljust(first) + "".join(name.rjust(width) for name, width in widths.items()))
    for evaluation in evaluations:
        values = (f"{evaluation.metrics[name]:{width}.2f}" for name, width in widths.items())
        print(evaluation.split.ljust(first) + "".join(values))


def print_sweep(evaluation: Evaluation, config: Config) -> None:
    """One row a score threshold, the config's marked by an arrow, and below it which is best for what."""
    print(f"\n{evaluation.split}: {conditions(config, with_threshold=False)}")
    print("  threshold" + "".join(name.rjust(11) for name in SWEPT))
    for threshold, result in evaluation.sweep.items():
        mark = "->" if threshold == config.eval.score_threshold else "  "
        print(mark + f"{threshold:9g}" + "".join(f"{result[name]:11.2f}" for name in SWEPT))
    print("best: " + ", ".join(f"{name} at {at:g}" for name, at in best_thresholds(evaluation.sweep).items()))


def write_metrics(path: Path, evaluations: Sequence[Evaluation], config: Config, source: str) -> None:
    """metrics.json: every number, under each rule, and what was measured how. NaN is written as null."""
    content = {
        "checkpoint": source,
        "eval": dataclasses.asdict(config.eval),
        "data": dataclasses.asdict(config.data),
        "splits": {
            evaluation.split: {
                "records": len(evaluation.rows),
                "seconds": round(evaluation.seconds, 2),
                "rule": config.eval.no_target_rule,
                "protocol": config.eval.protocol,
                "resolution": config.eval.resolution,
                "by_rule": {rule: _values(metrics) for rule, metrics in evaluation.by_rule.items()},
                **_sweep_content(evaluation),
            }
            for evaluation in evaluations
        },
    }
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def _values(metrics: dict[str, float]) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else value for name, value in metrics.items()}


def _sweep_content(evaluation: Evaluation) -> dict[str, Any]:
    if not evaluation.sweep:
        return {}
    rows = [{"score_threshold": at, **_values(metrics)} for at, metrics in evaluation.sweep.items()]
    return {"sweep": rows, "best_threshold": best_thresholds(evaluation.sweep)}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    argv = sys.argv[1:] if argv is None else argv
    options = {
        "checkpoint": (None, "checkpoint directory, such as WORKDIR/checkpoint"),
        "output": (None, "directory for metrics.json and report.html"),
        "distributed": sharding.DISTRIBUTED_OPTION,
    }
    switches = {
        "sweep": "measure F1, N_acc, T_acc and gIoU over score thresholds too, in the same pass",
        "coco": "write the answers to OUTPUT/predictions_SPLIT.json, as COCO's results JSON",
    }
    given, values = command_line.parse(argv, __doc__ or "", options, ("config", "checkpoint"), switches)
    if values["coco"] and not values["output"]:
        raise InputError("--coco writes into the directory of --output, which is not given")
    sharding.join_processes(str(values["distributed"] or ""))
    directory, sweep, coco = str(values["checkpoint"]), bool(values["sweep"]), bool(values["coco"])
    model, stored = checkpoint.load_model(directory)
    config = dataclasses.replace(given, model=stored.model)
    tokenizer = checkpoint.load_tokenizer(directory)
    evaluator = Evaluator(model, config, sharding.make_mesh(), sweep=sweep, coco=coco)
    evaluations = [
        evaluator(model, split, open_eval_split(config, split, tokenizer, sentences=coco), verbose=True)
        for split in config.data.eval_splits
    ]
    if not evaluations:
        raise InputError("data.eval_splits is empty; expected at least one split")
    if not sharding.is_first_process():
        return
    print_table(evaluations, config)
    if sweep:
        for evaluation in evaluations:
            print_sweep(evaluation, config)
    if values["output"]:
        output = Path(str(values["output"]))
        write_metrics(output / "metrics.json", evaluations, config, directory)
        if coco:
            for evaluation in evaluations:
                write_coco(output / f"predictions_{evaluation.split}.json", evaluation.coco_entries)
        report.write(output / "report.html", model, config, tokenizer, evaluations, Path(directory))
        print(f"report: {output / 'report.html'}")


if __name__ == "__main__":
    run_command(main)
