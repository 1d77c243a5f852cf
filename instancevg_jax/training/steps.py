"""Metrics of the steps since the last log line, kept on the device and then printed and logged together."""

import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from instancevg_jax.errors import InputError
from instancevg_jax.objective.losses import LOSS_GROUPS
from instancevg_jax.runtime.console import duration, say
from instancevg_jax.training.log import Progress, RunLog, memory_gb, note_bad_step
from instancevg_jax.training.plan import Plan


class StepReport:
    """The steps since the last log line. Their metrics stay on the device until the line is written."""

    def __init__(self, plan: Plan, workdir: Path, log: RunLog) -> None:
        self._plan, self._workdir, self._log = plan, workdir, log
        self._progress = Progress(plan.num_steps, plan.config.train.batch_size)
        self._start_over()

    def _start_over(self) -> None:
        self._steps: list[tuple[int, dict[str, Any], np.ndarray]] = []
        self.waited, self._since = 0.0, time.monotonic()  # seconds spent waiting for data

    def first(self, seconds: float) -> None:
        """Call it after the first step, which compiles: waits for its metrics. `seconds`: time before the call."""
        started = time.monotonic()
        jax.block_until_ready(self._steps[-1][1])
        seconds += time.monotonic() - started
        say(f"first step after {duration(seconds)} (compilation)")
        self._progress.rate_and_left(self._steps[-1][0])
        self.waited, self._since = 0.0, time.monotonic()

    def add(self, step: int, metrics: dict[str, Any], items: np.ndarray) -> None:
        """`items`: indices of the batch's items in the training split."""
        self._steps.append((step, metrics, items))

    def write(self, rate: float) -> None:
        """Print and log the means over the good steps. Raises InputError at a bad step, unless bad steps are to be skipped."""
        rows = [(step, {name: float(v) for name, v in metrics.items()}, items) for step, metrics, items in self._steps]
        step = rows[-1][0]
        waiting = self.waited / max(time.monotonic() - self._since, 1e-9)
        self._note_bad([row for row in rows if row[1]["bad"]])
        good = [metrics for _, metrics, _ in rows if not metrics["bad"]] or [rows[-1][1]]
        means = {name: float(np.mean([metrics[name] for metrics in good])) for name in good[0]}
        means["bad"] = float(np.mean([metrics["bad"] for _, metrics, _ in rows]))
        progress, per_second = self._progress.rate_and_left(step)
        machine = {
            "learning_rate": rate,
            "examples_per_second": per_second,
            "data_wait": waiting,
            "memory_gb": memory_gb(),
        }
        self._log.scalars(step, "train", {**means, **machine})
        groups = ", ".join(f"{name} {means[name]:.3f}" for name in LOSS_GROUPS)
        say(
            f"step {self._plan.position(step)}{progress}: loss {means['loss']:.3f} ({groups}), "
            f"gradient {means['grad_norm']:.2f}, lr {rate:.1e}, waiting for data {waiting:.0%}, "
            f"memory {machine['memory_gb']:.1f} GB"
        )
        self._start_over()

    def _note_bad(self, bad: list[tuple[int, dict[str, float], np.ndarray]]) -> None:
        for step, metrics, items in bad:
            values = {name: metrics[name] for name in ("loss", "grad_norm")}
            names = [self._plan.train_split.name(int(item)) for item in items]
            path = note_bad_step(self._workdir, step, values, names)
            problem = f"step {step} has loss {values['loss']:.4g} and gradient norm {values['grad_norm']:.4g}"
            if self._plan.config.train.bad_steps == "stop":
                raise InputError(
                    f"{problem}; its batch is named in {path}. Lower optim.learning_rate, fix those records, or skip "
                    "such steps with --config.train.bad_steps=skip"
                )
            say(f"warning: {problem}; skipped, its batch is named in {path}")
