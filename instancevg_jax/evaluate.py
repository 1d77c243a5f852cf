"""Measure a model on the splits of a data set: python -m instancevg_jax.evaluate --checkpoint DIR [--config configs/NAME.py]

The network is the checkpoint's. Data and evaluation settings come from --config, or from the checkpoint's own configuration
without it. --config.eval.protocol (official or strict) and --config.eval.resolution (network or original) define what is compared,
and how. With --output DIR, metrics.json and report.html are written there.
"""

import dataclasses
import datetime
import functools
import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from data_pipelines.shapes.dataset import TOKENIZER_PATH
from data_pipelines.splits import Split
from instancevg_jax import checkpoint
from instancevg_jax.answers.grounding import Grounding
from instancevg_jax.answers.predictor import Predictor
from instancevg_jax.config import Config, ModelConfig, check
from instancevg_jax.errors import InputError, run_command
from instancevg_jax.evaluation import coco, drawing, report
from instancevg_jax.evaluation.evaluator import Evaluation, Evaluator, conditions, of_all, open_eval_split
from instancevg_jax.evaluation.metrics import TASKS, Row
from instancevg_jax.evaluation.predictions import score_predictions
from instancevg_jax.evaluation.sweep import SWEPT, best_thresholds
from instancevg_jax.files import check_writable, write_atomically
from instancevg_jax.inputs.tokenizer import Tokenizer
from instancevg_jax.models.instancevg import InstanceVG
from instancevg_jax.runtime import command_line, sharding
from instancevg_jax.runtime.compilation import keep_compiled_programs
from instancevg_jax.runtime.console import say

# fields of the network that evaluation can change: the parameters are independent of them, or are resized
ADJUSTABLE = ("image_height", "image_width", "patch_size", "compute_dtype", "remat")
IRRELEVANT = ("pretrained", "initialization", "drop_path", "head_dropout", *ADJUSTABLE[3:])  # to an evaluation
OPTIONS = {
    "checkpoint": (None, "checkpoint directory, or the directory of a training run"),
    "predictions": (None, "score this file of predictions instead of a model; docs/evaluation.md describes the format"),
    "output": (None, "directory for metrics.json and report.html"),
    "draw": (None, "draw answers next to the truth into OUTPUT/drawn/SPLIT: all, or failures only"),
    "distributed": sharding.DISTRIBUTED_OPTION,
}
SWITCHES = {
    "sweep": "measure F1, N_acc, T_acc and gIoU at other score thresholds too, in the same pass",
    "coco": "write the answers to OUTPUT/predictions_SPLIT.json in COCO's results format",
}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    argv = list(sys.argv[1:] if argv is None else argv)
    config, values = command_line.parse(_with_config(argv), __doc__ or "", OPTIONS, ("config",), SWITCHES)
    _check_options(config, values)
    sharding.join_processes(str(values["distributed"] or ""))
    keep_compiled_programs()
    output = Path(str(values["output"])) if values["output"] else None
    if output:
        check_writable(output / "metrics.json")
    if values["predictions"]:
        config, evaluations, sources = _score_file(config, Path(str(values["predictions"])))
        answer, origin = None, str(values["predictions"])
    else:
        origin = str(checkpoint.find_checkpoint(str(values["checkpoint"])))
        model, config = _load(argv, config, origin)
        tokenizer = checkpoint.load_tokenizer(origin)
        evaluations, sources = _measure(model, config, tokenizer, values, output)
        answer = _answers(Predictor.from_model(model, config, tokenizer))
    if not sharding.is_first_process():
        return
    print_table(evaluations, config)
    for evaluation in evaluations:
        if evaluation.sweep:
            print_sweep(evaluation, config)
    if output:
        write_metrics(output / "metrics.json", evaluations, config, origin)
        log = Path(origin).parent / "metrics.jsonl"
        facts = {
            "Predictions" if values["predictions"] else "Model": origin,
            "Date": f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
            "Command": shlex.join(["python", "-m", "instancevg_jax.evaluate", *argv]),
        }
        path = output / "report.html"
        report.write(path, config, evaluations, sources, facts=facts, answer=answer, training_log=log)
        print(f"report: {path}")


def _with_config(argv: list[str]) -> list[str]:
    """The arguments, with the checkpoint's own configuration where --config is not among them."""
    directory = command_line.option(argv, "checkpoint")
    if directory is None or command_line.option(argv, "config") is not None:
        return argv
    return [f"--config={checkpoint.find_checkpoint(directory) / checkpoint.CONFIG}", *argv]


def _check_options(config: Config, values: dict[str, Any]) -> None:
    for name in ("coco", "draw"):
        if values[name] and not values["output"]:
            raise InputError(f"--{name} writes into the directory of --output; expected that too")
    if values["draw"] not in (None, *drawing.CHOICES):
        raise InputError(f"--draw is {values['draw']!r}; expected one of {', '.join(drawing.CHOICES)}")
    if not config.data.eval_splits:
        raise InputError("data.eval_splits is empty; expected at least one split")
    if not values["checkpoint"] and not values["predictions"]:
        raise InputError("--checkpoint is required, unless --predictions is given; see --help")
    if values["predictions"] and any(values[name] for name in ("checkpoint", "coco", "draw", "sweep")):
        raise InputError("--predictions cannot be combined with --checkpoint, --coco, --draw or --sweep")


def _load(argv: Sequence[str], given: Config, directory: str) -> tuple[InstanceVG, Config]:
    """The checkpoint's model, and the configuration to evaluate it with."""
    model, stored = checkpoint.load_model(directory)
    overridden = re.findall(r"^--?config\.model\.(\w+)", "\n".join(argv), re.M)
    changed = {
        name: getattr(given.model, name)
        for name in overridden
        if getattr(given.model, name) != getattr(stored.model, name)
    }
    for name, value in changed.items():
        if name not in ADJUSTABLE:
            raise InputError(
                f"--config.model.{name} is {value}, but the checkpoint {directory} has {getattr(stored.model, name)}; an "
                f"evaluation can change {', '.join(ADJUSTABLE)} only"
            )
    _note_differences(given.model, stored.model, overridden)
    if not changed:
        return model, dataclasses.replace(given, model=stored.model)
    config = dataclasses.replace(given, model=dataclasses.replace(stored.model, **changed))
    check(config)
    resized = nnx.eval_shape(lambda: InstanceVG(config.model, rngs=nnx.Rngs(0)))
    checkpoint.load_pretrained(resized, directory)
    return resized, config


def _note_differences(given: ModelConfig, stored: ModelConfig, overridden: Sequence[str]) -> None:
    """Print which values of the config file's network are not used, because the checkpoint has others."""
    names = [field.name for field in dataclasses.fields(ModelConfig)]
    differences = [
        f"{name} {getattr(stored, name)} (--config: {getattr(given, name)})"
        for name in names
        if name not in (*IRRELEVANT, *overridden) and getattr(given, name) != getattr(stored, name)
    ]
    if differences:
        say(f"note: the network is the checkpoint's: model.{', model.'.join(differences)}")


def _measure(
    model: InstanceVG, config: Config, tokenizer: Tokenizer, values: dict[str, Any], output: Path | None
) -> tuple[list[Evaluation], dict[str, Split]]:
    """Evaluate every split, and write what is asked for of its answers."""
    sentences = bool(values["coco"] or values["draw"])
    sources = {
        split: open_eval_split(config, split, tokenizer, sentences=sentences) for split in config.data.eval_splits
    }
    evaluator = Evaluator(model, config, sharding.make_mesh(), sweep=bool(values["sweep"]))
    evaluations = []
    for split, source in sources.items():
        entries: list[dict[str, Any]] = []
        handlers: list[Callable[[int, Grounding, Row], None]] = []
        if values["coco"]:
            handlers.append(_collector(entries, source))
        if values["draw"] and output:
            handlers.append(drawing.drawer(output / "drawn" / split, source, config.eval.task, values["draw"]))
        evaluations.append(evaluator(model, split, source, verbose=True, on_answer=_all(handlers)))
        if values["coco"] and output:
            _write_coco(output / f"predictions_{split}.json", entries)
    return evaluations, sources


def _answers(predictor: Predictor) -> Callable[[Sequence[tuple[np.ndarray, str]]], list[Grounding]]:
    return functools.partial(predictor.predict_batch, always_answer=TASKS[predictor.config.eval.task].always_answers)


def _all(handlers: list[Callable[[int, Grounding, Row], None]]) -> Callable[[int, Grounding, Row], None] | None:
    def call(record: int, grounding: Grounding, row: Row) -> None:
        for handler in handlers:
            handler(record, grounding, row)

    return call if handlers else None


def _collector(entries: list[dict[str, Any]], source: Split) -> Callable[[int, Grounding, Row], None]:
    def collect(record: int, grounding: Grounding, row: Row) -> None:
        entries.extend(coco.entries(grounding, source.describe(record), record))

    return collect


def _write_coco(path: Path, entries: list[dict[str, Any]]) -> None:
    """Write the entries of all processes."""
    parts = of_all("".join(json.dumps(entry) + "\n" for entry in entries).encode())
    if sharding.is_first_process():
        coco.write(path, [json.loads(line) for part in parts for line in part.splitlines()])


def _score_file(config: Config, path: Path) -> tuple[Config, list[Evaluation], dict[str, Split]]:
    """The predictions in a file, compared in the pictures' own pixels."""
    if len(config.data.eval_splits) != 1:
        raise InputError(
            f"data.eval_splits has {len(config.data.eval_splits)} splits, and --predictions is a file for one; expected "
            "something like --config.data.eval_splits=\"('val',)\""
        )
    config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, resolution="original"))
    (split,) = config.data.eval_splits
    # sentences are not tokenized here, so that any tokenizer will do
    source = open_eval_split(config, split, Tokenizer.from_file(TOKENIZER_PATH), sentences=True)
    return config, [score_predictions(path, config, split, source)], {split: source}


def print_table(evaluations: Sequence[Evaluation], config: Config) -> None:
    """The conditions, then one row per split."""
    print(conditions(config))
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


def write_metrics(path: Path, evaluations: Sequence[Evaluation], config: Config, source: str) -> None:
    """metrics.json: every number under each rule, as the protocol defines it, and the settings. NaN is written as null."""
    content = {
        "checkpoint": source,
        "eval": dataclasses.asdict(config.eval),
        "data": dataclasses.asdict(config.data),
        "splits": {
            evaluation.split: {
                "records": len(evaluation.rows),
                "seconds": round(evaluation.seconds, 2),
                "rule": evaluation.rule,
                "protocol": config.eval.protocol,
                "resolution": config.eval.resolution,
                "by_rule": {rule: _values(measured.result()) for rule, measured in evaluation.by_rule.items()},
                "undefined": [name for name, value in evaluation.metrics.items() if np.isnan(value)],
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


if __name__ == "__main__":
    run_command(main)
