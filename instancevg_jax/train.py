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

# Imports that take seconds are inside functions, so that --help and bad arguments are answered at once.
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from instancevg_jax.config import Config
from instancevg_jax.errors import InputError, run_command
from instancevg_jax.runtime import command_line

OPTIONS = {
    "workdir": (
        None,
        "Directory for checkpoints, metrics and logs; created if missing. With --data NAME.jsonl, runs/NAME if empty.",
    ),
    "distributed": command_line.DISTRIBUTED_OPTION,
    "profile": (
        None,
        "Profile this number of steps, after a few that warm up, and write the trace to WORKDIR/profile.",
    ),
    "data": (
        None,
        "Your own annotations, instead of --config: a file of any layout that `instancevg check` reads, or several, separated "
        "by commas.",
    ),
    "images": (None, "Folder that the file names of --data are relative to. Required with --data."),
    "from": (
        None,
        "What to fine-tune on --data: checkpoint directory, run folder, official weights file, or name of known weights. Empty: "
        "train a small model from scratch.",
    ),
    "captions": (
        None,
        "'categories': the category names of a detection export (COCO, ODVG) are the sentences of --data.",
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    argv = sys.argv[1:] if argv is None else argv
    start = _initial_settings(argv)
    config, values = command_line.parse(
        argv, __doc__ or "", OPTIONS, () if start else ("config", "workdir"), start=start
    )
    profile = str(values["profile"] or "0")
    if not profile.isdecimal():
        raise InputError(f"--profile is {profile!r}; expected a number of steps")
    command = ["python -m instancevg_jax.train", *argv]

    from instancevg_jax.runtime import sharding
    from instancevg_jax.runtime.compilation import keep_compiled_programs
    from instancevg_jax.training import own_data
    from instancevg_jax.training.loop import train

    keep_compiled_programs()
    if start is None:
        _check_config_alone(values)
        sharding.join_processes(str(values["distributed"] or ""))
        train(config, Path(str(values["workdir"])), command, int(profile))
        return
    if values["distributed"]:
        raise InputError("--data prepares data on one machine; train on several with --config WORKDIR/config.json")
    files = _files(str(values["data"]))
    own_data.fine_tune(
        files,
        str(values["images"]),
        str(values["from"]) if values["from"] else None,
        Path(str(values["workdir"] or Path("runs") / files[0].name.partition(".")[0])),
        settings=command_line.overridden(argv, config),
        captions=str(values["captions"] or ""),
        command=command,
        profile=int(profile),
    )


def _initial_settings(argv: Sequence[str]) -> Config | None:
    """What overrides apply to where --data is given instead of --config."""
    if command_line.option(argv, "data") is None:
        return None
    if command_line.option(argv, "config") is not None:
        raise InputError(
            "--data chooses the settings itself; expected it or --config, with --config.SECTION.FIELD=VALUE"
        )
    if command_line.option(argv, "images") is None:
        raise InputError("--data needs --images, the folder of the pictures")
    from instancevg_jax.training import own_data

    return own_data.initial_settings(command_line.option(argv, "from") or None)


def _check_config_alone(values: Mapping[str, object]) -> None:
    for name in ("images", "from", "captions"):
        if values[name] is not None:
            raise InputError(f"--{name} belongs to --data, which is missing")


def _files(stated: str) -> list[Path]:
    """The path itself if there is such a file, else the paths between its commas."""
    parts = [stated] if Path(stated).exists() else [part for part in stated.split(",") if part]
    return [Path(part).expanduser() for part in parts]


if __name__ == "__main__":
    run_command(main)
