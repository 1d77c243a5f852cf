"""Measure a model on the splits of a data set: python -m instancevg_jax.evaluate --checkpoint DIR [--config configs/NAME.py]

The network is the checkpoint's. Data and evaluation settings come from --config, or from the checkpoint's own configuration
without it. --config.eval.protocol (official or strict) and --config.eval.resolution (network or original) define what is compared,
and how. With --output DIR, metrics.json and report.html are written there.
"""

import datetime
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instancevg_jax.config import Config
from instancevg_jax.errors import InputError, run_command
from instancevg_jax.files import check_writable
from instancevg_jax.runtime import command_line

if TYPE_CHECKING:
    from instancevg_jax.evaluation.measured import Measured

OPTIONS = {
    "checkpoint": (None, "checkpoint directory, run folder, official weights file, or name of known weights"),
    "compare": (None, "a second model, measured on the same data and shown next to the first one"),
    "predictions": (None, "score this file of predictions instead of a model; docs/evaluation.md describes the format"),
    "output": (None, "directory for metrics.json and report.html"),
    "draw": (None, "draw answers next to the truth into OUTPUT/drawn/SPLIT: all, or failures only"),
    "distributed": command_line.DISTRIBUTED_OPTION,
}
SWITCHES = {
    "sweep": "measure F1, N_acc, T_acc and gIoU at other score thresholds too, in the same pass",
    "coco": "write the answers to OUTPUT/predictions_SPLIT.json in COCO's results format",
}
DRAW = ("all", "failures")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    argv = list(sys.argv[1:] if argv is None else argv)
    settings = command_line.option(argv, "config") or _stored_config(argv)
    with_config = [f"--config={settings}", *argv] if settings and command_line.option(argv, "config") is None else argv
    config, values = command_line.parse(with_config, __doc__ or "", OPTIONS, ("config",), SWITCHES)
    _check_options(config, values)

    from instancevg_jax.evaluation import outputs, report
    from instancevg_jax.runtime import sharding
    from instancevg_jax.runtime.compilation import keep_compiled_programs

    sharding.join_processes(str(values["distributed"] or ""))
    keep_compiled_programs()
    output = Path(str(values["output"])) if values["output"] else None
    if output:
        check_writable(output / "metrics.json")
    models = _measure(argv, config, values, output)
    if not sharding.is_first_process():
        return
    outputs.print_results(models, str(settings))
    if output:
        outputs.write_metrics(output / "metrics.json", models)
        facts = {
            "Settings": str(settings),
            "Date": f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
            "Command": shlex.join(["instancevg", "evaluate", *argv]),
        }
        report.write(output / "report.html", models, facts=facts)
        print(f"report: {output / 'report.html'}")


def _measure(argv: Sequence[str], config: Config, values: dict[str, Any], output: Path | None) -> "list[Measured]":
    """The checkpoint, followed by the one to compare it with; or the file of predictions."""
    from instancevg_jax.answers.predictor import checkpoint_directory
    from instancevg_jax.evaluation.measured import Wanted, measure, measure_predictions

    if values["predictions"]:
        return [measure_predictions(Path(values["predictions"]), config)]
    overridden = re.findall(r"^--?config\.model\.(\w+)", "\n".join(argv), re.M)
    wanted = Wanted(output=output, sweep=values["sweep"], coco=values["coco"], draw=values["draw"])
    other = (
        checkpoint_directory(values["compare"]) if values["compare"] else None
    )  # before hours are spent on the first
    models = [measure(values["checkpoint"], config, overridden, wanted)]
    return [*models, measure(other, config)] if other else models


def _stored_config(argv: Sequence[str]) -> Path | None:
    """The checkpoint's own configuration, if a checkpoint is given."""
    source = command_line.option(argv, "checkpoint")
    if source is None:
        return None
    from instancevg_jax import checkpoint
    from instancevg_jax.answers.predictor import checkpoint_directory

    return checkpoint_directory(source) / checkpoint.CONFIG


def _check_options(config: Config, values: dict[str, Any]) -> None:
    for name in ("coco", "draw"):
        if values[name] and not values["output"]:
            raise InputError(f"--{name} writes into the directory of --output; expected that too")
    if values["draw"] not in (None, *DRAW):
        raise InputError(f"--draw is {values['draw']!r}; expected one of {', '.join(DRAW)}")
    if not config.data.eval_splits:
        raise InputError("data.eval_splits is empty; expected at least one split")
    if not values["checkpoint"] and not values["predictions"]:
        raise InputError("--checkpoint is required, unless --predictions is given; see --help")
    if values["predictions"] and any(values[name] for name in ("checkpoint", "compare", "coco", "draw", "sweep")):
        raise InputError("--predictions cannot be combined with --checkpoint, --compare, --coco, --draw or --sweep")


if __name__ == "__main__":
    run_command(main)
