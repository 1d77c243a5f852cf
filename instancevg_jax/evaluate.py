"""Measure a model on the splits of a config: python -m instancevg_jax.evaluate --config configs/NAME.py --checkpoint DIR

The network's sizes come from the checkpoint, data and evaluation settings from the config. With --output DIR it leaves
metrics.json and report.html there (pictures of successes and failures, results by kind of sentence).
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from instancevg_jax import checkpoint, command_line, evaluation_report, sharding
from instancevg_jax.config import Config
from instancevg_jax.errors import run_command
from instancevg_jax.evaluation import Evaluation, evaluate
from instancevg_jax.files import write_atomically


def print_table(evaluations: Sequence[Evaluation]) -> None:
    """One row a split, under the config's rule."""
    names = list(evaluations[0].metrics)
    width = max(len(evaluation.split) for evaluation in evaluations) + 2
    print("".ljust(width) + "".join(name.rjust(11) for name in names))
    for evaluation in evaluations:
        print(evaluation.split.ljust(width) + "".join(f"{evaluation.metrics[name]:11.2f}" for name in names))


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
                "by_rule": {
                    rule: {name: None if np.isnan(value) else value for name, value in metrics.items()}
                    for rule, metrics in evaluation.by_rule.items()
                },
            }
            for evaluation in evaluations
        },
    }
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    argv = sys.argv[1:] if argv is None else argv
    options = {
        "checkpoint": (None, "checkpoint directory, such as WORKDIR/checkpoint"),
        "output": (None, "directory for metrics.json and report.html"),
        "distributed": sharding.DISTRIBUTED_OPTION,
    }
    given, values = command_line.parse(argv, __doc__ or "", options, ("config", "checkpoint"))
    sharding.join_processes(values["distributed"])
    directory = str(values["checkpoint"])
    model, stored = checkpoint.load_model(directory)
    config = dataclasses.replace(given, model=stored.model)
    tokenizer = checkpoint.load_tokenizer(directory)
    evaluations = [evaluate(model, config, tokenizer, split, verbose=True) for split in config.data.eval_splits]
    if not sharding.is_first_process():
        return
    print_table(evaluations)
    if values["output"]:
        output = Path(values["output"])
        write_metrics(output / "metrics.json", evaluations, config, directory)
        evaluation_report.write(output / "report.html", model, config, tokenizer, evaluations, Path(directory))
        print(f"report: {output / 'report.html'}")


if __name__ == "__main__":
    run_command(main)
