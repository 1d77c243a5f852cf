"""Train a model: python -m instancevg_jax.train --config configs/NAME.py[:VARIANT] --workdir DIR

A run that was stopped goes on from WORKDIR's last saved state when the same command is given again. SIGTERM makes it save its
state and end with status 0. What it leaves behind:

    config.json                 every setting of the run
    starts.jsonl                command, code, machine and settings of each start
    metrics.jsonl, tensorboard  losses, learning rate, rates; metrics of every evaluation, and pictures of its first answers
    state/STEP                  everything needed to go on
    checkpoint                  the model to evaluate, predict and share; with --config.train.eval_every, `best` is the best so far
    bad_steps.jsonl             steps that were skipped, with what was in their batches
"""

import dataclasses
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np
from flax import nnx

from data_pipelines import splits
from instancevg_jax import checkpoint
from instancevg_jax import config as configs
from instancevg_jax.answers.draw import Truth, draw_grounding
from instancevg_jax.answers.predictor import Predictor
from instancevg_jax.config import Config
from instancevg_jax.errors import InputError, run_command
from instancevg_jax.evaluation.evaluator import HEADLINES, Evaluator, metric_names, open_measured, summary
from instancevg_jax.files import write_atomically
from instancevg_jax.inputs.tokenizer import Tokenizer
from instancevg_jax.models.instancevg import InstanceVG
from instancevg_jax.runtime import command_line, sharding
from instancevg_jax.runtime.console import duration, say
from instancevg_jax.training import optim, train_state
from instancevg_jax.training.log import Progress, RunLog, memory_gb, note_bad_step
from instancevg_jax.training.resume import RunStates
from instancevg_jax.training.train_state import TrainState

PICTURES = 8  # answers that TensorBoard shows of each evaluation
PROFILE_AFTER = 10  # steps before a trace begins
# what must stay as it is, besides the network, when a run goes on: its state and its place in the data would not fit
FIXED = (
    *("data.name", "data.train_split", "data.shapes_level", "data.shapes_curriculum", "data.shapes_turns"),
    *("train.batch_size", "train.seed", "train.ema_decay"),
    *("optim.name", "optim.amsgrad", "optim.frozen"),
)


def train(
    config: Config, workdir: Path, command: Sequence[str] = (), profile: int = 0
) -> dict[str, dict[str, float]] | None:
    """Run `config` to its end and return the metrics of its evaluated splits; None where a signal ended it before.

    `command` is noted in the checkpoint. `profile` > 0: write a trace of so many steps to WORKDIR/profile.
    """
    settings = config.train
    configs.check(config)
    mesh = sharding.make_mesh(settings.mesh_data, settings.mesh_fsdp)
    sharding.check_batch_size(settings.batch_size, mesh, "train.batch_size", settings.accumulate_steps)
    tokenizer = splits.load_tokenizer(config)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise InputError(f"the tokenizer has {tokenizer.vocab_size} ids, model.vocab_size is {config.model.vocab_size}")
    num_steps, steps_per_epoch = _steps(config, tokenizer)
    _check_evaluation(config, tokenizer)
    _check_profile(profile, num_steps)
    batches = splits.train_batches(config, splits.open_split(config, config.data.train_split, tokenizer))
    graph, params, stats = train_state.split_model(_initial_model(config))
    optimizer = optim.make_optimizer(config.optim, params, steps_per_epoch=steps_per_epoch, num_steps=num_steps)
    rate = optim.schedule(config.optim, steps_per_epoch, num_steps)
    state = train_state.create(params, stats, optimizer, settings.ema_decay, mesh)
    train_step = train_state.make_train_step(graph, config, optimizer, mesh, state)

    with (
        RunStates(workdir, settings.keep_checkpoints) as states,
        Termination() as termination,
        RunLog(workdir if sharding.is_first_process() else None) as log,
        _Trace(workdir / "profile", profile) as trace,
    ):
        _check_workdir(workdir, config)
        state, start = _restore(states, state, batches)
        if sharding.is_first_process():
            write_atomically(workdir / "config.json", configs.to_json(config).encode())
        log.start(start, command)
        say(_greeting(config, params, mesh, num_steps))
        evaluate = _Publisher(graph, config, mesh, tokenizer, workdir, log, command, termination.check)
        report = _Report(config, tokenizer, workdir, log, Progress(num_steps, settings.batch_size))
        try:
            if 0 < start < num_steps and _every(settings.eval_every, start) and not log.has(start):
                evaluate(state, start)  # a signal ended it before
            for step in range(start + 1, num_steps + 1):
                trace.before(step - start)
                before = time.monotonic()
                batch = next(batches)
                report.waited += time.monotonic() - before
                placed = sharding.shard_batch(batch, mesh)
                if step == start + 1:
                    train_step = train_step.lower(state, placed).compile()
                    sharding.wait_for_all("the training step is compiled")
                state, metrics = train_step(state, placed)
                report.add(step, metrics, batch.item)
                trace.after(step - start, metrics)
                if step == start + 1:
                    report.first(time.monotonic() - before)
                stopping = termination.requested or states.reached_preemption(step)
                if stopping or step == num_steps or step % settings.log_every == 0:
                    report.write(float(rate(np.int32(step - 1))))
                evaluating = _every(settings.eval_every, step) and step < num_steps
                if stopping or evaluating or step == num_steps or _every(settings.checkpoint_every, step):
                    states.save(step, state, json.loads(json.dumps(batches.get_state())))
                if stopping and step < num_steps:
                    raise Terminated(step)
                if evaluating:
                    evaluate(state, step)
            return evaluate(state, max(start, num_steps))
        except Terminated as stopped:
            states.wait()
            after = stopped.step or int(state.step)
            say(f"stopped by a signal; the same command goes on from step {after}")
    return None


class Terminated(Exception):
    """A signal asks this run to end. What has been done is saved, or is being saved; `step`: up to which step."""

    def __init__(self, step: int = 0) -> None:
        self.step = step


class Termination:
    """Within this context SIGTERM does not end the process but sets `requested`, which the work looks at where it may stop.

    The handler raises nothing: it may run within a library that goes on after an exception, and the signal would be lost.
    Of several processes, which must all stop after the same step, JAX's own handler takes it: `RunStates.reached_preemption`.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "Termination":
        if jax.process_count() == 1:
            self._before = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._before)

    def check(self) -> None:
        """Raise Terminated if a signal has come: where nothing is lost when the work is broken off."""
        if self.requested:
            raise Terminated

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


class _Report:
    """What happened since the last line, and the line. Metrics stay on the device until it is written."""

    def __init__(self, config: Config, tokenizer: Tokenizer, workdir: Path, log: RunLog, progress: Progress) -> None:
        self._config, self._workdir, self._log, self._progress = config, workdir, log, progress
        self._source = splits.open_split(config, config.data.train_split, tokenizer)
        self._start_over()

    def _start_over(self) -> None:
        self._steps: list[tuple[int, dict[str, Any], np.ndarray]] = []
        self.waited, self._since = 0.0, time.monotonic()  # seconds spent waiting for data

    def first(self, seconds: float) -> None:
        """The first step, which compiles, is over once its metrics are here."""
        jax.block_until_ready(self._steps[-1][1])
        say(f"first step after {duration(seconds)} (compilation)")
        self._progress.line(self._steps[-1][0])
        self.waited, self._since = 0.0, time.monotonic()

    def add(self, step: int, metrics: dict[str, Any], items: np.ndarray) -> None:
        """`items`: numbers of the batch's items in the training split."""
        self._steps.append((step, metrics, items))

    def write(self, rate: float) -> None:
        """Print and log the means over the good steps. Raises InputError at a bad one, unless those are to be skipped."""
        rows = [(step, {name: float(v) for name, v in metrics.items()}, items) for step, metrics, items in self._steps]
        step = rows[-1][0]
        waiting = self.waited / max(time.monotonic() - self._since, 1e-9)
        self._note_bad([row for row in rows if row[1]["bad"]])
        good = [metrics for _, metrics, _ in rows if not metrics["bad"]] or [rows[-1][1]]
        means = {name: float(np.mean([metrics[name] for metrics in good])) for name in good[0]}
        means["bad"] = float(np.mean([metrics["bad"] for _, metrics, _ in rows]))
        told, per_second = self._progress.line(step)
        also = {
            "learning_rate": rate,
            "examples_per_second": per_second,
            "data_wait": waiting,
            "memory_gb": memory_gb(),
        }
        self._log.scalars(step, "train", {**means, **also})
        groups = ", ".join(f"{name} {means[name]:.3f}" for name in ("detection", "masks", "no_target"))
        say(
            f"step {told}: loss {means['loss']:.3f} ({groups}), gradient {means['grad_norm']:.2f}, "
            f"lr {rate:.1e}, waiting for data {waiting:.0%}, memory {also['memory_gb']:.1f} GB"
        )
        self._start_over()

    def _note_bad(self, bad: list[tuple[int, dict[str, float], np.ndarray]]) -> None:
        for step, metrics, items in bad:
            values = {name: metrics[name] for name in ("loss", "grad_norm")}
            path = note_bad_step(self._workdir, step, values, [self._source.name(int(item)) for item in items])
            told = f"step {step} has loss {values['loss']:.4g} and gradient norm {values['grad_norm']:.4g}"
            if self._config.train.bad_steps == "stop":
                raise InputError(
                    f"{told}; its batch is named in {path}. Lower optim.learning_rate, mend those records, or pass over "
                    "such steps with --config.train.bad_steps=skip"
                )
            say(f"warning: {told}; skipped, its batch is named in {path}")


class _Trace:
    """A profiler trace of `count` steps of this process after its first PROFILE_AFTER; none where `count` is 0."""

    def __init__(self, folder: Path, count: int) -> None:
        self._folder, self._count, self._tracing = folder, count, False

    def __enter__(self) -> "_Trace":
        return self

    def __exit__(self, *_: object) -> None:
        if self._tracing:
            jax.profiler.stop_trace()

    def before(self, number: int) -> None:
        """Begin if it is time. `number`: of this process's steps, from 1."""
        if self._count and number == PROFILE_AFTER + 1:
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True

    def after(self, number: int, metrics: Any) -> None:
        """End if it is time, with the step's work done."""
        if self._tracing and number == PROFILE_AFTER + self._count:
            jax.block_until_ready(metrics)
            jax.profiler.stop_trace()
            self._tracing = False
            say(f"trace of {self._count} steps: {self._folder}")


def _every(steps: int, step: int) -> bool:
    return steps > 0 and step % steps == 0


class _Publisher:
    """Makes WORKDIR/checkpoint, measures it on every evaluated split, and keeps it as WORKDIR/best where it is that."""

    def __init__(
        self,
        graph: Any,
        config: Config,
        mesh: jax.sharding.Mesh,
        tokenizer: Tokenizer,
        workdir: Path,
        log: RunLog,
        command: Sequence[str],
        check: Callable[[], None],
    ) -> None:
        """`check` is called now and then, and may raise to break an evaluation off."""
        self._check = check
        self._graph, self._config, self._mesh, self._tokenizer = graph, config, mesh, tokenizer
        self._workdir, self._log, self._command = workdir, log, " ".join(command)
        self._compiled: tuple[Evaluator, Predictor] | None = None

    def __call__(self, state: TrainState, step: int) -> dict[str, dict[str, float]]:
        """The metrics by split."""
        config, names = self._config, self._config.data.eval_splits
        # on the host: each process then works on it by itself
        model = nnx.merge(self._graph, *jax.device_get(sharding.gather(train_state.weights(state), self._mesh)))
        origin = {"origin": "trained by instancevg_jax.train", "step": step, "command": self._command}
        self._save("checkpoint", model, origin)
        if self._compiled is None:
            predictor = Predictor.from_model(model, config, self._tokenizer)
            self._compiled = Evaluator(model, config, self._tokenizer), predictor
        evaluate, predictor = self._compiled
        results = {}
        for split in names:
            results[split] = evaluate(model, split, after_batch=self._check).metrics
            self._log.scalars(step, split, results[split])
            say(f"step {step}, {split}: {summary(results[split])}")
        if names and sharding.is_first_process():
            _log_pictures(self._log, step, predictor.with_model(model), names[0])
            self._keep_best(model, origin, names[0], results[names[0]])
        sharding.wait_for_all("the evaluation is published")
        return results

    def _keep_best(self, model: InstanceVG, origin: dict[str, Any], split: str, results: dict[str, float]) -> None:
        metric = _best_metric(self._config)
        score = results[metric]
        if self._config.train.eval_every and score > _best_so_far(self._workdir, split, metric):
            self._save("best", model, {**origin, "best": {"split": split, "metric": metric, "value": score}})
            say(f"step {origin['step']}: best {metric} on {split} so far")

    def _save(self, name: str, model: InstanceVG, origin: dict[str, Any]) -> None:
        if not sharding.is_first_process():
            return
        dtype = None if self._config.train.checkpoint_dtype == "float32" else self._config.train.checkpoint_dtype
        content = nnx.state(model), self._config, self._tokenizer.model_bytes, origin
        checkpoint.save_checkpoint(self._workdir / name, *content, dtype=dtype)


def _best_so_far(workdir: Path, split: str, metric: str) -> float:
    """The score of WORKDIR/best; -inf where there is none by this measure."""
    if not (workdir / "best").is_dir():
        return -math.inf
    best = checkpoint.load_provenance(workdir / "best").get("best", {})
    return best["value"] if (best.get("split"), best.get("metric")) == (split, metric) else -math.inf


def _log_pictures(log: RunLog, step: int, predictor: Predictor, split: str) -> None:
    """The first answers of a split, the same records at every evaluation."""
    source = splits.open_split(
        predictor.config, split, predictor.tokenizer, length=predictor.config.data.num_eval_examples
    )
    shown = [source.show(record) for record in range(min(PICTURES, len(source)))]
    groundings = predictor.predict_batch([s.picture for s in shown], [s.expression for s in shown])
    for record, (about, grounding) in enumerate(zip(shown, groundings, strict=True)):
        truth = Truth(about.boxes_xyxy, about.masks)
        log.picture(step, f"{split}/{record}", draw_grounding(about.picture, grounding, about.expression, truth))


def _check_evaluation(config: Config, tokenizer: Tokenizer) -> None:
    """Refuse before hours of training what would fail at their end."""
    sharding.check_batch_size(config.eval.batch_size, sharding.make_mesh(), "eval.batch_size")
    for split in config.data.eval_splits:
        open_measured(config, split, tokenizer)
    if (metric := _best_metric(config)) not in (names := metric_names(config)):
        raise InputError(f"train.best_metric is {metric!r}; expected one of {', '.join(names)}")


def _best_metric(config: Config) -> str:
    return config.train.best_metric or HEADLINES[config.eval.task]


def _check_profile(count: int, num_steps: int) -> None:
    if count and num_steps < PROFILE_AFTER + count:
        needed = PROFILE_AFTER + count
        raise InputError(
            f"--profile {count} needs {needed} steps, {PROFILE_AFTER} before its own; there are {num_steps}"
        )


def _initial_model(config: Config) -> InstanceVG:
    model = InstanceVG(config.model, rngs=nnx.Rngs(config.train.seed))
    if config.model.pretrained:
        checkpoint.load_pretrained(model, config.model.pretrained)
    return model


def _steps(config: Config, tokenizer: Tokenizer) -> tuple[int, int]:
    """How many steps the run takes, and an epoch."""
    source = splits.open_split(config, config.data.train_split, tokenizer)
    per_epoch = max(math.ceil(len(source) / config.train.batch_size), 1)
    if config.train.num_steps < 0 or config.train.num_epochs < 0:
        raise InputError("train.num_steps and train.num_epochs cannot be negative")
    if len(source) == splits.ENDLESS and not config.train.num_steps:
        raise InputError(f"the {config.data.name!r} data has no end: set train.num_steps")
    return config.train.num_steps or per_epoch * config.train.num_epochs, per_epoch


def _check_workdir(workdir: Path, config: Config) -> None:
    """Refuse to go on with a run whose state, or place in the data, would not fit; say what else has changed since."""
    if not (workdir / "state").is_dir() or not (workdir / "config.json").is_file():
        return
    before, now = (_flat(c) for c in (configs.load(workdir / "config.json"), config))
    changed = [name for name in now if now[name] != before[name]]
    for name in changed:
        told = f"{name} is {now[name]!r}, and was {before[name]!r}"
        if name.startswith("model.") or name in FIXED:
            raise InputError(f"{workdir} holds a run of another kind: {told}; choose another --workdir")
        say(f"changed since the last start: {told}")


def _flat(config: Config) -> dict[str, Any]:
    """Dotted field name -> value."""
    sections = dataclasses.asdict(config).items()
    return {f"{section}.{name}": value for section, fields in sections for name, value in fields.items()}


def _greeting(config: Config, params: Any, mesh: jax.sharding.Mesh, num_steps: int) -> str:
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    device = jax.devices()[0].device_kind
    return (
        f"{count / 1e6:.1f} M parameters, {config.model.image_height} x {config.model.image_width} pictures, "
        f"{num_steps} steps of {config.train.batch_size}, {sharding.describe(mesh)} ({device})"
    )


def _restore(states: RunStates, state: TrainState, batches: Any) -> tuple[TrainState, int]:
    """The last saved state and its step, the data put where it was; or what was given and 0."""
    found = states.restore(state)
    if found is None:
        return state, 0
    state, data, step = found
    batches.set_state(data)
    say(f"going on from step {step}")
    return state, step


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    argv = sys.argv[1:] if argv is None else argv
    options = {
        "workdir": (None, "directory for checkpoints, metrics and logs; made if it is not there"),
        "distributed": sharding.DISTRIBUTED_OPTION,
        "profile": (None, f"write a profiler trace of so many steps, after {PROFILE_AFTER} others, to WORKDIR/profile"),
    }
    config, values = command_line.parse(argv, __doc__ or "", options, ("config", "workdir"))
    profile = str(values["profile"] or "0")
    if not profile.isdecimal():
        raise InputError(f"--profile is {profile!r}; expected a number of steps")
    sharding.join_processes(str(values["distributed"] or ""))
    train(config, Path(str(values["workdir"])), ["python -m instancevg_jax.train", *argv], int(profile))


if __name__ == "__main__":
    run_command(main)
