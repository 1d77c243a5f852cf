"""What a run says while it goes: console lines with rate and ETA, metrics.jsonl, TensorBoard files."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter


def duration(seconds: float) -> str:
    """For people: "42s", "3m20s", "2h05m"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


class RunLog:
    """Writes scalars to WORKDIR/metrics.jsonl (a line a call) and WORKDIR/tensorboard. `workdir` None: nothing is written."""

    def __init__(self, workdir: Path | None):
        self._file = (workdir / "metrics.jsonl").open("a", buffering=1) if workdir else None
        self._board = SummaryWriter(str(workdir / "tensorboard")) if workdir else None
        self._start = time.monotonic()

    def scalars(self, step: int, group: str, values: Mapping[str, float]) -> None:
        """`group` is "train" or the name of an evaluated split. Values that JSON cannot hold (NaN) become null."""
        if self._file is None or self._board is None:
            return
        values = {name: float(value) for name, value in values.items()}
        told = {name: value if np.isfinite(value) else None for name, value in values.items()}
        elapsed = round(time.monotonic() - self._start, 2)
        self._file.write(json.dumps({"step": step, "group": group, "seconds": elapsed, **told}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(f"{group}/{name}", value, step)

    def picture(self, step: int, name: str, rgb: np.ndarray) -> None:
        """A [H, W, 3] uint8 picture for TensorBoard."""
        if self._board is not None:
            self._board.add_image(name, rgb, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close both files."""
        if self._file is not None and self._board is not None:
            self._file.close()
            self._board.close()


class Progress:
    """Rate and time left since the first step after compilation."""

    def __init__(self, num_steps: int, batch_size: int):
        self._num_steps, self._batch_size = num_steps, batch_size
        self._start: tuple[int, float] | None = None

    def line(self, step: int) -> tuple[str, float]:
        """ "1200/8000, 131 examples/s, 4m05s left" and the rate, of work since the first call."""
        now = time.monotonic()
        if self._start is None:
            self._start = step, now
        done, seconds = step - self._start[0], now - self._start[1]
        if not done:
            return f"{step}/{self._num_steps}", float("nan")
        left = duration(seconds / done * (self._num_steps - step))
        rate = done * self._batch_size / seconds
        return f"{step}/{self._num_steps}, {rate:.0f} examples/s, {left} left", rate
