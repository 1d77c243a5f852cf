"""Train a model: python -m instancevg_jax.train --config CONFIG --workdir DIR

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

import sys
from collections.abc import Sequence
from pathlib import Path

from instancevg_jax.errors import InputError, run_command
from instancevg_jax.runtime import command_line, sharding
from instancevg_jax.runtime.compilation import keep_compiled_programs
from instancevg_jax.training.loop import train
from instancevg_jax.training.trace import WARM_UP

__all__ = ["main", "train"]


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    argv = sys.argv[1:] if argv is None else argv
    options = {
        "workdir": (None, "Directory for checkpoints, metrics and logs; created if missing."),
        "distributed": sharding.DISTRIBUTED_OPTION,
        "profile": (
            None,
            f"Profile this number of steps, after {WARM_UP} warm-up steps, and write the trace to WORKDIR/profile.",
        ),
    }
    config, values = command_line.parse(argv, __doc__ or "", options, ("config", "workdir"))
    profile = str(values["profile"] or "0")
    if not profile.isdecimal():
        raise InputError(f"--profile is {profile!r}; expected a number of steps")
    keep_compiled_programs()
    sharding.join_processes(str(values["distributed"] or ""))
    train(config, Path(str(values["workdir"])), ["python -m instancevg_jax.train", *argv], int(profile))


if __name__ == "__main__":
    run_command(main)
