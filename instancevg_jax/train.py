"""Train a model: instancevg train --config CONFIG --workdir DIR

With your own data, in one command: instancevg train --data my.jsonl --images DIR --from MODEL [--workdir DIR]
checks the data, prepares it in WORKDIR/prepared, and fine-tunes MODEL: a checkpoint directory, a run folder, an official weights
file, or a name such as instancevg-grefcoco. Settings are chosen for it; --config.SECTION.FIELD=VALUE changes single ones.

The same command resumes a run from the last state in WORKDIR. On SIGTERM the run saves its state and ends with status 0; a run
that is killed loses the work since its last saved state, at most one epoch by default. Files in WORKDIR:

    config.json                 every setting of the run
    starts.jsonl                command, code, machine and settings of each start
    metrics.jsonl, tensorboard  losses, learning rate, rates; metrics and first answers of every validation
    state/STEP                  everything needed to resume
    checkpoint                  the last model, for evaluate and predict
    best                        the best model by train.best_metric
    best_detection              the best model by the task's detection metric, as the original keeps it
    best_segmentation           the same by its segmentation metric
    bad_steps.jsonl             steps that were skipped or stopped the run, with the records in their batches
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from instancevg_jax.config import Config
from instancevg_jax.errors import InputError, run_command
from instancevg_jax.runtime import command_line


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    argv = sys.argv[1:] if argv is None else argv
    args, rest = command_line.parse(_parser(), argv)
    command = ["python -m instancevg_jax.train", *argv]
    if args.data:
        _fine_tune(args, rest, command)
        return
    config = command_line.override(command_line.load_config(args.config), rest)
    if not args.workdir:
        raise InputError("--workdir is required; see --help")
    for name, value in (("images", args.images), ("from", args.start), ("captions", args.captions)):
        if value:
            raise InputError(f"--{name} belongs to --data, which is missing")

    from instancevg_jax.runtime import sharding
    from instancevg_jax.runtime.compilation import keep_compiled_programs
    from instancevg_jax.training.loop import train

    keep_compiled_programs()
    sharding.join_processes(args.distributed)
    train(config, Path(args.workdir), command, args.profile)


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser_of("train", __doc__ or "")
    add = parser.add_argument
    add(
        "--workdir",
        metavar="DIR",
        help="folder of the run, made if missing (default with --data NAME.jsonl: runs/NAME)",
    )
    add("--distributed", metavar="PROCESSES", default="", help=command_line.DISTRIBUTED_HELP)
    add(
        "--profile",
        metavar="N",
        type=int,
        default=0,
        help="profile N steps, after some warm-up steps, and write the trace to WORKDIR/profile",
    )
    add(
        "--data",
        metavar="FILES",
        help="your own annotations, instead of --config: a file of any layout that `instancevg check` reads, or several, "
        "separated by commas",
    )
    add("--images", metavar="DIR", help="folder that the file names of --data are relative to; required with --data")
    add(
        "--from",
        dest="start",
        metavar="MODEL",
        help="what to fine-tune on --data (default: a small model from scratch)",
    )
    add(
        "--captions",
        choices=("categories",),
        default="",
        help="with --data, categories: the names of the categories of a detection export are its sentences",
    )
    return parser


def _fine_tune(args: argparse.Namespace, rest: Sequence[str], command: Sequence[str]) -> None:
    """Train on --data."""
    if args.config:
        raise InputError(
            "--data chooses the settings itself; expected it or --config, with --config.SECTION.FIELD=VALUE"
        )
    if not args.images:
        raise InputError("--data needs --images, the folder of the pictures")
    if args.distributed:
        raise InputError("--data prepares data on one machine; train on several with --config WORKDIR/config.json")

    from instancevg_jax.runtime.compilation import keep_compiled_programs
    from instancevg_jax.training import own_data

    keep_compiled_programs()
    files = _files(args.data)
    own_data.fine_tune(
        files,
        args.images,
        args.start,
        args.workdir or Path("runs") / files[0].name.partition(".")[0],
        settings=command_line.values_of(Config(), rest),
        captions=args.captions,
        command=command,
        profile=args.profile,
    )


def _files(stated: str) -> list[Path]:
    """The path itself if there is such a file, else the paths between its commas."""
    parts = [stated] if Path(stated).exists() else [part for part in stated.split(",") if part]
    return [Path(part).expanduser() for part in parts]


if __name__ == "__main__":
    run_command(main)
