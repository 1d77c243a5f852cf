"""Profiler traces of a few training steps."""

from pathlib import Path
from typing import Any

import jax

from instancevg_jax.errors import InputError
from instancevg_jax.runtime.console import say

WARM_UP = 10  # steps before a trace begins


def check_profile(count: int, num_steps: int) -> None:
    """Raise InputError if a run is too short for a trace of `count` steps."""
    if count < 0:
        raise InputError(f"--profile is {count}; expected a number of steps")
    if count and num_steps < WARM_UP + count:
        needed = WARM_UP + count
        raise InputError(
            f"--profile {count} needs {needed} steps, {WARM_UP} of them to warm up; the run has {num_steps}"
        )


class Trace:
    """A profiler trace of `count` steps, after the first WARM_UP steps of this process; no trace if `count` is 0."""

    def __init__(self, folder: Path, count: int) -> None:
        self._folder, self._count, self._tracing = folder, count, False

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *_: object) -> None:
        if self._tracing:
            jax.profiler.stop_trace()

    def before(self, number: int) -> None:
        """Call it before each step. `number`: of the step among this process's steps, from 1."""
        if self._count and number == WARM_UP + 1:
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True

    def after(self, number: int, metrics: Any) -> None:
        """Call it after each step with the step's metrics, which the trace waits for."""
        if self._tracing and number == WARM_UP + self._count:
            jax.block_until_ready(metrics)
            jax.profiler.stop_trace()
            self._tracing = False
            say(f"trace of {self._count} steps: {self._folder}")
