"""Logs of a run: metrics.jsonl, starts.jsonl, TensorBoard files, and the rate and time left for the console."""

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
from tensorboardX import SummaryWriter

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
    with path.open("a") as file:
        written = {name: value if np.isfinite(value) else str(value) for name, value in values.items()}
        file.write(json.dumps({"step": step, **written, "items": items}) + "\n")
    return path


class RunLog:
    """Writes scalars to WORKDIR/metrics.jsonl (one line per call) and WORKDIR/tensorboard, and each start to starts.jsonl.

    If `workdir` is None, as on all processes but the first, nothing is written.
    """

    def __init__(self, workdir: Path | None):
        self._workdir = workdir
        self._file = (workdir / "metrics.jsonl").open("a", buffering=1) if workdir else None
        self._board = SummaryWriter(str(workdir / "tensorboard")) if workdir else None
        self._start = time.monotonic()

    def scalars(self, step: int, group: str, values: Mapping[str, float], model: str = "") -> None:
        """Log values after a step. NaN and infinity become null in JSON and are left out of TensorBoard.

        Args:
            step: the step, or of a published model, the step it was made at.
            group: "train", or the name of an evaluated split.
            values: name -> value.
            model: the folder of the published model that was evaluated; empty for the run's current model.
        """
        if self._file is None or self._board is None:
            return
        values = {name: float(value) for name, value in values.items()}
        finite = {name: value if np.isfinite(value) else None for name, value in values.items()}
        row = {"step": step, "group": group, **({"model": model} if model else {})}
        row["seconds"] = round(time.monotonic() - self._start, 2)
        self._file.write(json.dumps({**row, **finite}) + "\n")
        for name, value in finite.items():
            if value is not None:
                self._board.add_scalar("/".join(filter(None, (model, group, name))), value, step)

    def start(self, step: int, command: Sequence[str]) -> None:
        """Log that the run starts or resumes after `step`: one line of starts.jsonl."""
        if self._workdir is None:
            return
        with (self._workdir / "starts.jsonl").open("a") as file:
            file.write(json.dumps({"after_step": step, **environment(command)}) + "\n")

    def picture(self, step: int, name: str, rgb: np.ndarray) -> None:
        """Log a [H, W, 3] uint8 picture to TensorBoard."""
        if self._board is not None:
            self._board.add_image(name, rgb, step, dataformats="HWC")

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
        if self._file is not None and self._board is not None:
            self._file.close()
            self._board.close()


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
