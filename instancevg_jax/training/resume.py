"""Saved states of a run, written in the background and verified when read.

WORKDIR/state/STEP    parameters, statistics, optimizer, averages and step (Orbax), position in the data, fingerprint of the state
WORKDIR/damaged/STEP  states that could not be read, moved here
WORKDIR/lock          held by the one trainer that writes in WORKDIR
"""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array, UInt32

from instancevg_jax import config as configs
from instancevg_jax.config import Config
from instancevg_jax.errors import InputError, first_line
from instancevg_jax.files import locked
from instancevg_jax.runtime import sharding
from instancevg_jax.runtime.console import say
from instancevg_jax.runtime.trees import flatten
from instancevg_jax.training.train_state import TrainState

# settings besides the network's that a resumed run must keep: its state or its position in the data would not fit
FIXED = (
    *("data.name", "data.train_split", "data.shapes_level", "data.shapes_curriculum", "data.shapes_turns"),
    *("train.batch_size", "train.seed", "train.ema_decay"),
    *("optim.name", "optim.amsgrad", "optim.frozen"),
)


def check_workdir(workdir: Path, config: Config) -> None:
    """Print the settings that have changed since the last start. Raise InputError if `config` cannot resume the run."""
    if not (workdir / "state").is_dir() or not (workdir / "config.json").is_file():
        return
    before = configs.fields(configs.load(workdir / "config.json"))
    for name, (_, value) in configs.fields(config).items():
        old = before[name][1]
        if value == old:
            continue
        if name.startswith("model.") or name in FIXED:
            raise InputError(
                f"{workdir} holds another run: its {name} is {old!r}, not {value!r}; choose another --workdir"
            )
        say(f"changed since the last start: {name} is {value!r}, was {old!r}")


class RunStates:
    """The saved states of one run. As a context manager, it holds the lock and waits for background writes at the end.

    A state appears under its step's name only when it is complete, so the process may be killed at any time.
    """

    def __init__(self, workdir: Path, keep: int) -> None:
        """`keep`: number of latest states to keep. Raises InputError if another trainer is running in `workdir`."""
        self._folder, self._aside = (workdir / "state").absolute(), (workdir / "damaged").absolute()
        self._lock = _lock_for_all(workdir / "lock")
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, cleanup_tmp_directories=True
        )
        handlers = {"state": ocp.StandardCheckpointHandler(), "about": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)

    def __enter__(self) -> "RunStates":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None):
        try:
            self._manager.wait_until_finished()
            self._manager.close()
        except Exception as error:  # of the background write; an exception that is already propagating says more
            if value is None:
                raise self._not_saved(self._manager.latest_step(), error) from error
        finally:
            self._lock.close()

    def save(self, step: int, state: TrainState, data: Mapping[str, Any]) -> None:
        """Start writing. The state may be donated once this returns. Raises InputError if the disk is full.

        `data`: the position in the data, as JSON values.
        """
        about = {"data": data, "fingerprint": fingerprint(state)}
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about))
        try:
            self._manager.save(step, args=arguments)
        except Exception as error:  # Orbax and tensorstore raise many types, also for the previous background write
            raise self._not_saved(step, error) from error

    def wait(self) -> None:
        """Wait until everything saved is on disk. Raises InputError as `save` does."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # as above
            raise self._not_saved(self._manager.latest_step(), error) from error

    def restore(self, state: TrainState) -> tuple[TrainState, Any, int] | None:
        """The latest readable state (sharded as `state` is), its `data` and its step; None if none was saved.

        A state that cannot be read is reported and moved to WORKDIR/damaged, and the previous one is tried. Raises InputError if
        states were saved and none can be read, or if they belong to another network or optimizer.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            found, problem = None, "on another process"
            try:
                found = self._read(step, state)
            except InputError:
                raise
            except Exception as error:  # Orbax and tensorstore raise many types for a damaged file
                problem = first_line(error)
            if sharding.on_all_processes(found is not None) and found is not None:
                self._move_damaged(damaged)
                return found[0], found[1]["data"], step
            damaged[step] = problem
            print(f"warning: {self._folder / str(step)} is damaged ({problem})", flush=True)
        if damaged:
            raise InputError(
                f"{self._folder}: none of its {len(damaged)} states can be read; move it away to start from scratch"
            )
        return None

    def reached_preemption(self, step: int) -> bool:
        """Whether the cluster has asked for all processes to stop after this step (with several processes only)."""
        return jax.process_count() > 1 and self._manager.reached_preemption(step)

    def _read(self, step: int, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        self._check_fit(step, abstract)
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), about=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=arguments)
        if fingerprint(restored["state"]) != restored["about"]["fingerprint"]:
            raise ValueError("its values differ from those that were saved")
        return restored["state"], restored["about"]

    def _check_fit(self, step: int, abstract: TrainState) -> None:
        """Raise InputError for a state of another network or optimizer, which is intact."""
        metadata = self._manager.item_metadata(step)["state"]
        stored, wanted = _shapes(metadata), _shapes(abstract)
        if not stored:
            raise ValueError("its description is missing")
        differing = sorted(name for name in stored | wanted if stored.get(name) != wanted.get(name))
        if differing:
            name = differing[0]
            raise InputError(
                f"{self._folder / str(step)} belongs to another run: its {name} is {stored.get(name, 'missing')}, "
                f"not {wanted.get(name, 'missing')}; choose another --workdir"
            )

    def _move_damaged(self, damaged: Mapping[int, str]) -> None:
        if not damaged:
            return
        for step in damaged if sharding.is_first_process() else ():
            self._aside.mkdir(exist_ok=True)
            target = next(p for n in range(1000) if not (p := self._aside / f"{step}.{n}").exists())
            (self._folder / str(step)).rename(target)
            print(f"warning: moved it to {target}", flush=True)
        sharding.wait_for_all("damaged states are moved")
        self._manager.reload()

    def _not_saved(self, step: int | None, error: Exception) -> InputError:
        return InputError(f"{self._folder}: the state of step {step} was not saved ({first_line(error)})")


def fingerprint(tree: Any) -> int:
    """A checksum that changes with any single bit of any leaf and does not depend on the sharding.

    It is the sum modulo 2**32 of all words, each times an odd number that depends on its position. Every device sums its own
    shards, without collectives: hundreds of small ones once deadlocked two CPU processes.
    """
    mine = [
        (2 * number + 1, _sum(shard.data, np.array([part.start or 0 for part in shard.index], np.uint32)))
        for number, leaf in enumerate(jax.tree.leaves(tree))
        for shard in leaf.addressable_shards
        if shard.replica_id == 0
    ]
    return sharding.sum_over_processes(sum(factor * int(part) for factor, part in jax.device_get(mine)))


@jax.jit  # per leaf, as there are few shapes; one program for thousands of leaves would take many minutes to compile
def _sum(part: Array, start: UInt32[Array, " axes"]) -> UInt32[Array, ""]:
    """The fingerprint of a shard whose first element is at index `start` of its array."""
    words = _words(part)
    place = jnp.uint32(0)
    for axis in range(words.ndim):
        count = start[axis] + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        place = place * jnp.uint32(2_654_435_761) + count
    return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)


def _words(leaf: Array) -> UInt32[Array, "..."]:
    """The bits of an array as words, one per element (two per 64-bit element)."""
    leaf = leaf.astype(jnp.uint8) if leaf.dtype == jnp.bool_ else leaf
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)


def _lock_for_all(path: Path) -> ExitStack:
    """Holds the lock until it is closed, on the first process. If that fails, all processes raise InputError."""
    lock, refusal = ExitStack(), None
    if sharding.is_first_process():
        try:
            lock.enter_context(locked(path, "another trainer is running here"))
        except InputError as error:
            refusal = error
    if not sharding.on_all_processes(refusal is None):
        raise refusal or InputError(f"{path.parent}: another trainer is running here")
    return lock


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Dotted name -> shape, of every leaf."""
    return {name: tuple(leaf.shape) for name, leaf in flatten(tree).items()}
