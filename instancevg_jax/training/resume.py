"""What a run needs to go on, saved in the background while it goes, and checked when it is read back.

WORKDIR/state/STEP    parameters, statistics, optimizer, averages, step (Orbax), where the data is, and a fingerprint of it all
WORKDIR/damaged/STEP  states that could not be read, set aside
WORKDIR/lock          held by the one trainer that writes here
"""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array, UInt32

from instancevg_jax.errors import InputError, first_line
from instancevg_jax.runtime import sharding
from instancevg_jax.training.train_state import TrainState


class RunStates:
    """The saved states of one run, as a context: the lock is held and background writes are awaited until it ends.

    A state appears under its step's name when it is whole, so a process may be killed at any moment.
    """

    def __init__(self, workdir: Path, keep: int) -> None:
        """`keep`: how many states stay, the latest. Raises InputError where another trainer is at work in `workdir`."""
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
        except Exception as error:  # of the background write; an error that is on its way already says more
            if value is None:
                raise self._not_saved(self._manager.latest_step(), error) from error
        finally:
            if self._lock is not None:
                os.close(self._lock)

    def save(self, step: int, state: TrainState, data: Mapping[str, Any]) -> None:
        """Start writing; `data` is JSON. The state may be donated once this returns. Raises InputError on a full disk."""
        about = {"data": data, "fingerprint": fingerprint(state)}
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about))
        try:
            self._manager.save(step, args=arguments)
        except Exception as error:  # Orbax and tensorstore raise many types, here also those of the write before
            raise self._not_saved(step, error) from error

    def wait(self) -> None:
        """Until what was saved is on the disk. Raises InputError as `save` does."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # as above
            raise self._not_saved(self._manager.latest_step(), error) from error

    def restore(self, state: TrainState) -> tuple[TrainState, Any, int] | None:
        """The latest whole state (laid out over devices as `state` is), its `data` and its step; None where none was saved.

        What cannot be read is named, set aside, and the one before is taken. Raises InputError where states were saved and
        none can be read, or where they are of another network or optimizer.
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
                self._set_aside(damaged)
                return found[0], found[1]["data"], step
            damaged[step] = problem
            print(f"warning: {self._folder / str(step)} is damaged ({problem})", flush=True)
        if damaged:
            raise InputError(
                f"{self._folder}: none of its {len(damaged)} states can be read; move it away to start anew"
            )
        return None

    def reached_preemption(self, step: int) -> bool:
        """Whether the cluster asks all processes to stop after this step (with several processes only)."""
        return jax.process_count() > 1 and self._manager.reached_preemption(step)

    def _read(self, step: int, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        self._check_fit(step, abstract)
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), about=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=arguments)
        if fingerprint(restored["state"]) != restored["about"]["fingerprint"]:
            raise ValueError("its values are not those that were saved")
        return restored["state"], restored["about"]

    def _check_fit(self, step: int, abstract: TrainState) -> None:
        """Raise InputError for a state of another network or optimizer, which is not damaged."""
        metadata = self._manager.item_metadata(step)["state"]
        stored = {_name(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(metadata)}
        wanted = {_name(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)}
        if not stored:
            raise ValueError("its description is missing")
        differing = sorted(name for name in stored | wanted if stored.get(name) != wanted.get(name))
        if differing:
            name = differing[0]
            raise InputError(
                f"{self._folder / str(step)} is of another run: {name} is {stored.get(name, 'missing')} there, "
                f"{wanted.get(name, 'missing')} here; choose another --workdir"
            )

    def _set_aside(self, damaged: Mapping[int, str]) -> None:
        if not damaged:
            return
        for step in damaged if sharding.is_first_process() else ():
            self._aside.mkdir(exist_ok=True)
            target = next(p for n in range(1000) if not (p := self._aside / f"{step}.{n}").exists())
            (self._folder / str(step)).rename(target)
            print(f"warning: set it aside as {target}", flush=True)
        sharding.wait_for_all("damaged states are set aside")
        self._manager.reload()

    def _not_saved(self, step: int | None, error: Exception) -> InputError:
        return InputError(f"{self._folder}: the state of step {step} was not saved ({first_line(error)})")


def fingerprint(tree: Any) -> int:
    """A number that changes with any single bit of any leaf, and not with how the leaves lie on devices.

    A sum modulo 2**32 of all words, each times an odd number made of its place. Every device sums what it has, without talking to
    others: with hundreds of small collectives under way, two processes on CPUs stopped for good.
    """
    mine = [
        (2 * number + 1, _sum(shard.data, np.array([part.start or 0 for part in shard.index], np.uint32)))
        for number, leaf in enumerate(jax.tree.leaves(tree))
        for shard in leaf.addressable_shards
        if shard.replica_id == 0
    ]
    return sharding.sum_over_processes(sum(factor * int(part) for factor, part in jax.device_get(mine)))


@jax.jit  # by itself: there are few shapes, but a program of thousands of leaves takes many minutes to compile
def _sum(part: Array, start: UInt32[Array, " axes"]) -> UInt32[Array, ""]:
    """Of a part that begins at `start` in the whole."""
    words = _words(part)
    place = jnp.uint32(0)
    for axis in range(words.ndim):
        count = start[axis] + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        place = place * jnp.uint32(2_654_435_761) + count
    return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)


def _words(leaf: Array) -> UInt32[Array, "..."]:
    """The bits of an array, up to 32 a word."""
    leaf = leaf.astype(jnp.uint8) if leaf.dtype == jnp.bool_ else leaf
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)


def _lock_for_all(path: Path) -> int | None:
    """The lock, taken by the first of the processes; where it cannot be, all of them raise InputError."""
    lock, refusal = None, None
    if sharding.is_first_process():
        try:
            lock = _lock(path)
        except InputError as error:
            refusal = error
    if not sharding.on_all_processes(refusal is None):
        raise refusal or InputError(f"{path.parent}: another trainer is at work here")
    return lock


def _lock(path: Path) -> int:
    """An open file with an exclusive lock on it, which ends with the process however it ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be written to ({error.strerror})") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(handle, 100).decode(errors="replace").strip()
        os.close(handle)
        raise InputError(f"{path.parent}: another trainer is at work here ({holder or 'unknown'})") from error
    except OSError as error:
        os.close(handle)
        raise InputError(
            f"{path}: cannot be locked ({error.strerror}); choose a --workdir whose file system can"
        ) from error
    os.ftruncate(handle, 0)
    os.write(handle, json.dumps({"host": os.uname().nodename, "pid": os.getpid()}).encode())
    return handle


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", entry)))) for entry in path)
