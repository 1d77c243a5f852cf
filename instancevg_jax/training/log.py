"""Logs of a run: metrics.jsonl, starts.jsonl, TensorBoard files, and the rate and time left for the console."""

import contextlib
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

from instancevg_jax.errors import InputError
from instancevg_jax.files import append_line
from instancevg_jax.runtime import sharding
from instancevg_jax.runtime.console import duration, two_digits
from instancevg_jax.runtime.version import __version__, git_commit

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain")
SETTINGS = (
    "XLA_",
    "JAX_",
    "LIBTPU_",
    "CUDA_",
    "NCCL_",
    "GLIBC_TUNABLES",
)  # prefixes of the environment variables to log


def memory_gb() -> float:
    """Peak memory in 10^9 bytes: of the first device, or of this process where the device does not report it (CPU)."""
    import resource  # does not exist on Windows

    stats = jax.local_devices()[0].memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024
    return stats.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit) / 1e9


def environment(command: Sequence[str]) -> dict[str, Any]:
    """The code, packages, machine and environment of a run, as JSON values."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": " ".join(command),
        "version": __version__,
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "cpus": os.cpu_count(),
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(SETTINGS)},
    }


def note_bad_step(workdir: Path, step: int, values: Mapping[str, float], items: Sequence[str]) -> Path:
    """Append a bad step and the names of this process's items in its batch to the process's file, which is returned."""
    number = jax.process_index()
    path = workdir / (f"bad_steps.{number}.jsonl" if number else "bad_steps.jsonl")
    written = {name: value if np.isfinite(value) else str(value) for name, value in values.items()}
    append_line(path, json.dumps({"step": step, **written, "items": items}))
    return path


class RunLog:
    """Writes scalars to WORKDIR/metrics.jsonl (one line per call) and WORKDIR/tensorboard, and each start to starts.jsonl.

    If `workdir` is None, as on all processes but the first, nothing is written. All methods that write raise InputError if the
    disk is full.
    """

    def __init__(self, workdir: Path | None):
        self._workdir = workdir
        self._start = time.monotonic()
        if workdir:
            (workdir / "metrics.jsonl").touch()
            (workdir / "tensorboard").mkdir(exist_ok=True)
            # not tensorboardX's SummaryWriter, which waits forever for its thread once that has met a full disk
            self._board = EventsWriter(str(workdir / "tensorboard" / "events"))

    def scalars(self, step: int, group: str, values: Mapping[str, float], model: str = "") -> None:
        """Log values after a step. NaN and infinity become null in JSON and are left out of TensorBoard.

        Args:
            step: the step, or of a published model, the step it was made at.
            group: "train", or the name of an evaluated split.
            values: name -> value.
            model: the folder of the published model that was evaluated; empty for the run's current model.
        """
        if self._workdir is None:
            return
        values = {name: float(value) for name, value in values.items()}
        finite = {name: value if np.isfinite(value) else None for name, value in values.items()}
        row = {"step": step, "group": group, **({"model": model} if model else {})}
        row["seconds"] = round(time.monotonic() - self._start, 2)
        append_line(self._workdir / "metrics.jsonl", json.dumps({**row, **finite}))
        names = {name: "/".join(filter(None, (model, group, name))) for name in finite}
        self._show(step, *(summary.scalar(names[n], value) for n, value in finite.items() if value is not None))

    def start(self, step: int, command: Sequence[str]) -> None:
        """Log that the run starts or resumes after `step`: one line of starts.jsonl."""
        if self._workdir is not None:
            append_line(self._workdir / "starts.jsonl", json.dumps({"after_step": step, **environment(command)}))

    def picture(self, step: int, name: str, rgb: np.ndarray) -> None:
        """Log a [H, W, 3] uint8 picture to TensorBoard."""
        if self._workdir is not None:
            self._show(step, summary.image(name, rgb, dataformats="HWC"))

    def has(self, step: int) -> bool:
        """Whether metrics.jsonl has a validation after this step. All processes must call it, and get the first one's answer."""
        there = False
        if self._workdir is not None:
            rows = [json.loads(line) for line in (self._workdir / "metrics.jsonl").read_text().splitlines() if line]
            there = any(row["step"] == step and row["group"] != "train" and "model" not in row for row in rows)
        return not sharding.on_all_processes(self._workdir is None or not there)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self._workdir is not None:
            with contextlib.suppress(OSError):  # everything was flushed, or the disk is full and that was raised
                self._board.close()

    def _show(self, step: int, *summaries: Any) -> None:
        """Write summaries, as tensorboardX makes them, to TensorBoard's file."""
        try:
            for one in summaries:
                self._board.write_event(Event(step=step, wall_time=time.time(), summary=one))
            self._board.flush()
        except OSError as error:
            raise InputError(f"{self._workdir}: the log for TensorBoard was not written ({error.strerror})") from error


class Progress:
    """Rate and time left, measured from the first call: after the first step, so that compilation does not count."""

    def __init__(self, num_steps: int, batch_size: int):
        self._num_steps, self._batch_size = num_steps, batch_size
        self._start: tuple[int, float] | None = None

    def rate_and_left(self, step: int) -> tuple[str, float]:
        """ ", 131 examples/s, 4m05s left" and the rate; "" and NaN on the first call."""
        now = time.monotonic()
        if self._start is None:
            self._start = step, now
        done, seconds = step - self._start[0], now - self._start[1]
        if not done:
            return "", float("nan")
        left = duration(seconds / done * (self._num_steps - step))
        rate = done * self._batch_size / seconds
        return f", {two_digits(rate)} examples/s, {left} left", rate
