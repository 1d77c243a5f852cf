"""Measure a model on the splits of a data set: python -m instancevg_jax.evaluate --checkpoint DIR [--config configs/NAME.py]

The network is the checkpoint's. Data and evaluation settings come from --config, or from the checkpoint's own configuration
without it. --config.eval.protocol (official or strict) and --config.eval.resolution (network or original) define what is compared,
and how. With --output DIR, metrics.json and report.html are written there.
"""

import argparse
import datetime
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instancevg_jax.config import Config, with_values
from instancevg_jax.errors import InputError, run_command
from instancevg_jax.files import check_writable
from instancevg_jax.runtime import command_line

if TYPE_CHECKING:
    from instancevg_jax.evaluation.measured import Measured


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args, rest = command_line.parse(_parser(), argv)

    from instancevg_jax import checkpoint
    from instancevg_jax.answers.predictor import checkpoint_directory
    from instancevg_jax.evaluation import outputs, report
    from instancevg_jax.runtime import sharding
    from instancevg_jax.runtime.compilation import keep_compiled_programs

    if not args.checkpoint and not args.predictions:
        raise InputError("--checkpoint is required, unless --predictions is given; see --help")
    settings = args.config
    if not settings and args.checkpoint:
        settings = str(checkpoint_directory(args.checkpoint) / checkpoint.CONFIG)
    config = command_line.load_config(settings)
    changes = command_line.values_of(config, rest)
    config = with_values(config, changes)
    _check_options(config, args)
    if args.compare:
        checkpoint_directory(args.compare)  # before hours are spent on the first
    sharding.join_processes(args.distributed)
    keep_compiled_programs()
    if args.output:
        check_writable(args.output / "metrics.json")
    models = _measure(args, config, changes)
    if not sharding.is_first_process():
        return
    outputs.print_results(models, settings)
    if args.output:
        outputs.write_metrics(args.output / "metrics.json", models)
        facts = {
            "Settings": settings,
            "Date": f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
            "Command": shlex.join(["instancevg", "evaluate", *argv]),
        }
        report.write(args.output / "report.html", models, facts=facts)
        print(f"report: {args.output / 'report.html'}")


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser_of("evaluate", __doc__ or "")
    add = parser.add_argument
    add(
        "--checkpoint",
        metavar="MODEL",
        help="checkpoint directory, run folder, official weights file, name of known weights, or built-in",
    )
    add("--compare", metavar="MODEL", help="a second model, measured on the same data and shown next to the first one")
    add(
        "--predictions",
        metavar="FILE",
        type=Path,
        help="score this file of predictions instead of a model; docs/evaluation.md describes the format",
    )
    add("--output", metavar="DIR", type=Path, help="directory for metrics.json and report.html")
    add("--draw", choices=("all", "failures"), help="draw answers next to the truth into OUTPUT/drawn/SPLIT")
    add(
        "--sweep",
        action="store_true",
        help="measure F1, N_acc, T_acc and gIoU at other score thresholds in the same pass",
    )
    add("--coco", action="store_true", help="write answers to OUTPUT/predictions_SPLIT.json in COCO's results format")
    add("--distributed", metavar="PROCESSES", default="", help=command_line.DISTRIBUTED_HELP)
    return parser


def _measure(args: argparse.Namespace, config: Config, changes: Mapping[str, Any]) -> list["Measured"]:
    """The checkpoint, followed by the one to compare it with; or the file of predictions."""
    from instancevg_jax.evaluation.measured import ExtraOutputs, measure_checkpoint, measure_predictions

    if args.predictions:
        return [measure_predictions(args.predictions, config)]
    overridden = [name.removeprefix("model.") for name in changes if name.startswith("model.")]
    extras = ExtraOutputs(output=args.output, sweep=args.sweep, coco=args.coco, draw=args.draw)
    models = [measure_checkpoint(args.checkpoint, config, overridden, extras)]
    if args.compare:
        models.append(measure_checkpoint(args.compare, config))
    return models


def _check_options(config: Config, args: argparse.Namespace) -> None:
    for name in ("coco", "draw"):
        if getattr(args, name) and not args.output:
            raise InputError(f"--{name} writes into the directory of --output; expected that too")
    if not config.data.eval_splits:
        raise InputError("data.eval_splits is empty; expected at least one split")
    if args.predictions and (args.checkpoint or args.compare or args.coco or args.draw or args.sweep):
        raise InputError("--predictions cannot be combined with --checkpoint, --compare, --coco, --draw or --sweep")


if __name__ == "__main__":
    run_command(main)
