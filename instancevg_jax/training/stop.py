"""Stops a run early on SIGTERM without losing work."""

import signal
import threading
from types import FrameType

import jax


class Terminated(Exception):
    """The run was asked to stop. `step`: the last saved step; 0 if nothing new was saved."""

    def __init__(self, step: int = 0) -> None:
        self.step = step


class Termination:
    """Within this context SIGTERM does not end the process. It sets `requested`, which the loop reads where it may stop.

    The handler raises nothing: it may run inside a library that swallows exceptions, and the signal would be lost. Python
    allows signal handlers in the main thread only; in another thread the signal keeps its usual effect. With several processes,
    which must all stop after the same step, JAX's own handler takes the signal: see `RunStates.reached_preemption`.
    """

    def __init__(self) -> None:
        self.requested = False
        self._handles = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()

    def __enter__(self) -> "Termination":
        if self._handles:
            self._before = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        if self._handles:
            signal.signal(signal.SIGTERM, self._before)

    def check(self) -> None:
        """Raise Terminated if the signal has arrived. Call it where interrupting loses nothing."""
        if self.requested:
            raise Terminated

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
