"""Train a model: python -m instancevg_jax.train --config configs/NAME.py[:VARIANT] --workdir DIR

A run that was stopped goes on from WORKDIR's last saved state when the same command is given again. What it leaves behind:

    config.json                 every setting of the run
    metrics.jsonl, tensorboard  losses, learning rate, rates; metrics of every evaluation
    state/STEP                  everything needed to go on
    checkpoint                  the model to evaluate, predict and share
"""

import functools
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from data_pipelines import splits
from instancevg_jax import checkpoint, command_line, optim, sharding, train_state
from instancevg_jax import config as configs
from instancevg_jax.config import Config
from instancevg_jax.errors import InputError, run_command
from instancevg_jax.evaluation import evaluate, summary
from instancevg_jax.models.instancevg import InstanceVG
from instancevg_jax.run_log import Progress, RunLog, duration
from instancevg_jax.tokenizer import Tokenizer
from instancevg_jax.train_state import TrainState


def train(config: Config, workdir: Path, command: Sequence[str] = ()) -> dict[str, dict[str, float]]:
    """Run `config` to its end and return the metrics of its evaluated splits. `command` is noted in the checkpoint."""
    settings = config.train
    mesh = sharding.make_mesh(settings.mesh_data, settings.mesh_fsdp)
    sharding.check_batch_size(settings.batch_size, mesh, "train.batch_size", settings.accumulate_steps)
    tokenizer = splits.load_tokenizer(config)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise InputError(f"the tokenizer has {tokenizer.vocab_size} ids, model.vocab_size is {config.model.vocab_size}")
    num_steps, steps_per_epoch = _steps(config, tokenizer)
    batches = splits.train_batches(config, tokenizer)
    graph, params, stats = train_state.split_model(_initial_model(config))
    optimizer = optim.make_optimizer(config.optim, params, steps_per_epoch=steps_per_epoch, num_steps=num_steps)
    rate = optim.schedule(config.optim, steps_per_epoch, num_steps)
    state = train_state.create(params, stats, optimizer, settings.ema_decay, mesh)
    train_step = train_state.make_train_step(graph, config, optimizer, mesh, state)
    _check_workdir(workdir, config)
    sharding.wait_for_all("checked")
    if sharding.is_first_process():
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "config.json").write_text(configs.to_json(config))
    sharding.say(_greeting(config, params, mesh, num_steps))

    log = RunLog(workdir if sharding.is_first_process() else None)
    progress = Progress(num_steps, settings.batch_size)
    publish = functools.partial(_publish, graph, config, mesh, tokenizer, workdir, log, command)
    with _states(workdir, config) as states:
        state, start = _restore(states, state, batches)
        gathered, waited, since = [], 0.0, time.monotonic()
        for step in range(start + 1, num_steps + 1):
            before = time.monotonic()
            batch = sharding.shard_batch(next(batches), mesh)
            waited += time.monotonic() - before
            state, metrics = train_step(state, batch)
            gathered.append(metrics)
            if step == start + 1:
                jax.block_until_ready(metrics)
                sharding.say(f"first step after {duration(time.monotonic() - before)} (compilation)")
                progress.line(step)
                waited, since = 0.0, time.monotonic()
            if step % settings.log_every == 0 or step == num_steps:
                waiting = waited / max(time.monotonic() - since, 1e-9)
                _report(log, step, gathered, progress, float(rate(np.int32(step - 1))), waiting)
                gathered, waited, since = [], 0.0, time.monotonic()
            if step == num_steps or (settings.checkpoint_every and step % settings.checkpoint_every == 0):
                _save(states, step, state, batches)
            if settings.eval_every and step % settings.eval_every == 0 and step < num_steps:
                publish(state, step)
    results = publish(state, max(start, num_steps))
    log.close()
    return results


def _publish(
    graph: Any,
    config: Config,
    mesh: jax.sharding.Mesh,
    tokenizer: Tokenizer,
    workdir: Path,
    log: RunLog,
    command: Sequence[str],
    state: TrainState,
    step: int,
) -> dict[str, dict[str, float]]:
    """Write WORKDIR/checkpoint and measure it on every evaluated split."""
    model = nnx.merge(graph, *sharding.gather(train_state.weights(state), mesh))
    origin = {"origin": "trained by instancevg_jax.train", "step": step, "command": " ".join(command)}
    dtype = None if config.train.checkpoint_dtype == "float32" else config.train.checkpoint_dtype
    if sharding.is_first_process():
        checkpoint.save_checkpoint(
            workdir / "checkpoint", nnx.state(model), config, tokenizer.model_bytes, origin, dtype=dtype
        )
    results = {}
    for split in config.data.eval_splits:
        results[split] = evaluate(model, config, tokenizer, split).metrics
        log.scalars(step, split, results[split])
        sharding.say(f"step {step}, {split}: {summary(results[split])}")
    return results


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
    """Refuse to go on with a run of another network or optimizer: its state would not fit."""
    if not (workdir / "state").is_dir() or not (workdir / "config.json").is_file():
        return
    stored = configs.load(workdir / "config.json")
    for name in ("model", "optim"):
        if getattr(stored, name) != getattr(config, name):
            raise InputError(f"{workdir} holds a run with another {name!r} section; choose another --workdir")


def _greeting(config: Config, params: Any, mesh: jax.sharding.Mesh, num_steps: int) -> str:
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    device = jax.devices()[0].device_kind
    return (
        f"{count / 1e6:.1f} M parameters, {config.model.image_height} x {config.model.image_width} pictures, "
        f"{num_steps} steps of {config.train.batch_size}, {sharding.describe(mesh)} ({device})"
    )


def _report(log: RunLog, step: int, gathered: list, progress: Progress, rate: float, waiting: float) -> None:
    """Log the means since the last report. `waiting`: the share of time spent waiting for data."""
    means = {name: float(np.mean([float(row[name]) for row in gathered])) for name in gathered[0]}
    told, per_second = progress.line(step)
    log.scalars(
        step, "train", {**means, "learning_rate": rate, "examples_per_second": per_second, "data_wait": waiting}
    )
    groups = ", ".join(f"{name} {means[name]:.3f}" for name in ("detection", "masks", "no_target"))
    sharding.say(
        f"step {told}: loss {means['loss']:.3f} ({groups}), gradient {means['grad_norm']:.2f}, "
        f"lr {rate:.1e}, waiting for data {waiting:.0%}"
    )
    if not math.isfinite(means["loss"]):
        raise InputError(f"the loss is {means['loss']} near step {step}; lower optim.learning_rate or optim.clip_norm")


def _states(workdir: Path, config: Config) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(max_to_keep=config.train.keep_checkpoints, enable_async_checkpointing=True)
    return ocp.CheckpointManager((workdir / "state").absolute(), options=options)


def _save(states: ocp.CheckpointManager, step: int, state: TrainState, batches: Any) -> None:
    data = json.loads(json.dumps(batches.get_state()))
    states.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data)))


def _restore(states: ocp.CheckpointManager, state: TrainState, batches: Any) -> tuple[TrainState, int]:
    """The last saved state and its step, the data put where it was; or what was given and 0."""
    step = states.latest_step()
    if step is None:
        return state, 0
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    restored = states.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore())
    )
    batches.set_state(restored["data"])
    sharding.say(f"going on from step {step}")
    return restored["state"], step


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    argv = sys.argv[1:] if argv is None else argv
    options = {
        "workdir": (None, "directory for checkpoints, metrics and logs; made if it is not there"),
        "distributed": sharding.DISTRIBUTED_OPTION,
    }
    config, values = command_line.parse(argv, __doc__ or "", options, ("config", "workdir"))
    sharding.join_processes(values["distributed"])
    train(config, Path(str(values["workdir"])), ["python -m instancevg_jax.train", *argv])


if __name__ == "__main__":
    run_command(main)
