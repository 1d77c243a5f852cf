"""The training loop."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from data_pipelines import splits
from instancevg_jax import checkpoint
from instancevg_jax import config as configs
from instancevg_jax.config import Config
from instancevg_jax.files import write_atomically
from instancevg_jax.models.instancevg import InstanceVG
from instancevg_jax.runtime import sharding
from instancevg_jax.runtime.allocator import release_freed_memory
from instancevg_jax.runtime.console import say
from instancevg_jax.training import optim, train_state
from instancevg_jax.training.log import RunLog
from instancevg_jax.training.plan import Plan, make_plan
from instancevg_jax.training.publish import Publisher, Results
from instancevg_jax.training.resume import RunStates, check_workdir
from instancevg_jax.training.steps import StepReport
from instancevg_jax.training.stop import Terminated, Termination
from instancevg_jax.training.trace import Trace, check_profile
from instancevg_jax.training.train_state import TrainState


def train(config: Config, workdir: Path, command: Sequence[str] = (), profile: int = 0) -> Results | None:
    """Run `config` to its end, resuming from the last state in `workdir` if there is one. Works in any thread.

    Args:
        config: every setting of the run.
        workdir: folder for checkpoints, metrics and logs, as instancevg_jax/train.py lists them.
        command: the command line, noted in the checkpoints.
        profile: number of steps to trace into WORKDIR/profile.

    Returns:
        Metrics in percent by split of data.eval_splits: of WORKDIR/best, or of the last model if nothing was validated. None if
        a signal ended the run early.

    Raises:
        InputError: settings that cannot work, another trainer in `workdir`, a full disk, or a loss that is not finite.
    """
    plan = make_plan(config)
    config, settings = plan.config, plan.config.train
    check_profile(profile, plan.num_steps)
    batches = splits.train_batches(config, plan.train_split)
    graph, params, stats = train_state.split_model(nnx.eval_shape(lambda: _new_model(config)))
    lengths = {"steps_per_epoch": plan.steps_per_epoch, "num_steps": plan.num_steps}
    optimizer = optim.make_optimizer(config.optim, params, **lengths)
    rate = optim.schedule(config.optim, **lengths)
    shapes = train_state.abstract(params, stats, optimizer, settings.ema_decay, plan.mesh)
    train_step = train_state.make_train_step(graph, config, optimizer, plan.mesh, shapes)

    with (
        RunStates(workdir, settings.keep_checkpoints) as states,
        Termination() as termination,
        RunLog(workdir if sharding.is_first_process() else None) as log,
        Trace(workdir / "profile", profile) as trace,
    ):
        check_workdir(workdir, config)
        state, start = _restore(states, shapes, batches)
        if state is None:
            state = _first_state(config, optimizer, plan)
        release_freed_memory()
        if sharding.is_first_process():
            write_atomically(workdir / "config.json", configs.to_json(config).encode())
        log.start(start, command)
        say(_describe(plan, params))
        publisher = Publisher(plan, graph, workdir, log, command, termination.check)
        report = StepReport(plan, workdir, log)
        try:
            if start and plan.validates_after(start) and not log.has(start):
                publisher.validate(state, start)  # the run ended before it was done
            for step in range(start + 1, plan.num_steps + 1):
                trace.before(step - start)
                before = time.monotonic()
                batch = next(batches)
                report.waited += time.monotonic() - before
                placed = sharding.shard_batch(batch, plan.mesh)
                if step == start + 1:
                    say("compiling the training step ...")
                    train_step = train_step.lower(state, placed).compile()
                    release_freed_memory()
                    sharding.wait_for_all("the training step is compiled")
                state, metrics = train_step(state, placed)
                report.add(step, metrics, batch.item)
                trace.after(step - start, metrics)
                if step == start + 1:
                    report.first(time.monotonic() - before)
                stopping = termination.requested or states.reached_preemption(step)
                if stopping or step == plan.num_steps or step % settings.log_every == 0:
                    report.write(float(rate(np.int32(step - 1))))
                if stopping or plan.saves_after(step):
                    states.save(step, state, json.loads(json.dumps(batches.get_state())))
                if stopping and step < plan.num_steps:
                    raise Terminated(step)
                if plan.validates_after(step):
                    publisher.validate(state, step)
            return publisher.finish(state, max(start, plan.num_steps))
        except Terminated as stopped:
            states.wait()
            say(f"stopped by a signal; the same command resumes from step {stopped.step or int(state.step)}")
    return None


def _new_model(config: Config) -> InstanceVG:
    return InstanceVG(config.model, rngs=nnx.Rngs(config.train.seed))


def _first_state(config: Config, optimizer: optax.GradientTransformationExtraArgs, plan: Plan) -> TrainState:
    model = _new_model(config)
    if config.model.pretrained:
        checkpoint.load_pretrained(model, config.model.pretrained)
    _, params, stats = train_state.split_model(model)
    return train_state.create(params, stats, optimizer, config.train.ema_decay, plan.mesh)


def _describe(plan: Plan, params: Any) -> str:
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    size = f"{plan.config.model.image_height} x {plan.config.model.image_width}"
    devices = f"{sharding.describe(plan.mesh)} ({jax.devices()[0].device_kind})"
    return f"{count / 1e6:.1f} M parameters, {size} pictures, {devices}\n{plan.describe()}"


def _restore(states: RunStates, shapes: TrainState, batches: Any) -> tuple[TrainState | None, int]:
    """The last saved state and its step, with the data moved to its place; None and 0 if none was saved."""
    found = states.restore(shapes)
    if found is None:
        return None, 0
    state, data, step = found
    batches.set_state(data)
    say(f"resuming from step {step}")
    return state, step
