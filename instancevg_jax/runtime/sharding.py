"""Where arrays live: `jax.jit` over one mesh with the axes `data` and `fsdp`, for one device and for many hosts alike.

Batches are split over both axes. Parameters, optimizer state and averages are copied along `data` and split along `fsdp`, so a mesh
of n x 1 is data parallel, 1 x n fully sharded ("FSDP"), and one in between does both.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import multihost

from instancevg_jax.errors import InputError

DATA, FSDP = "data", "fsdp"
SMALLEST_SPLIT = 4096  # elements; below, a copy on every device costs less than gathering the parts


DISTRIBUTED_OPTION = (
    None,
    "be one of several processes: auto, or HOST:PORT,NUMBER,COUNT (the first's address, which, of how many)",
)


def join_processes(where: str) -> None:
    """Make this process one of several; "": it is alone. Call it before anything asks JAX for a device.

    `where`: "HOST:PORT,NUMBER,COUNT", the address of process 0, which process this is (from 0), of how many; or "auto", where the
    cluster tells (TPU pods, Slurm, Open MPI, Kubernetes).

    Raises InputError where neither is understood.
    """
    if not where:
        return
    if where == "auto":
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise InputError(
                f"--distributed=auto: no cluster was recognized ({error}); give HOST:PORT,NUMBER,COUNT"
            ) from error
        return
    address, *numbers = where.split(",")
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers) or not _is_address(address):
        raise InputError(
            f"--distributed is {where!r}; expected auto or HOST:PORT,NUMBER,COUNT such as 10.0.0.1:1234,0,2"
        )
    number, count = map(int, numbers)
    if number >= count:
        raise InputError(f"--distributed is {where!r}; expected a NUMBER of 0 to {count - 1}, below COUNT")
    jax.distributed.initialize(address, num_processes=count, process_id=number)


def make_mesh(data: int = 0, fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of data x fsdp over `devices`, which defaults to all of all processes. `data` 0: as many as `fsdp` leaves.

    Raises InputError where the product is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if fsdp < 1 or data < 0 or (data or len(devices) // fsdp) * fsdp != len(devices):
        told = f"train.mesh_data is {data}, train.mesh_fsdp {fsdp}"
        raise InputError(
            f"{told}; expected a product of {len(devices)}, the number of devices (mesh_data 0: what is left)"
        )
    shape = (data or len(devices) // fsdp, fsdp)
    return jax.make_mesh(shape, (DATA, FSDP), axis_types=(AxisType.Auto, AxisType.Auto), devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """For leaves whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec((DATA, FSDP)))


def replicated(mesh: Mesh) -> NamedSharding:
    """For what every device has whole."""
    return NamedSharding(mesh, PartitionSpec())


def place(tree, mesh: Mesh):
    """A tree that every process has whole (numpy or local arrays) as global arrays, split as `split_sharding` says."""

    def put(leaf, sharding: NamedSharding) -> jax.Array:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree, split_sharding(tree, mesh))


def split_sharding(tree, mesh: Mesh):
    """The sharding of each leaf of parameters or of a training state, by its shape alone.

    A leaf is split along the longest of its axes that `fsdp` divides; leaves below `SMALLEST_SPLIT` elements, and those without
    such an axis, are whole on every device.
    """
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _split(leaf.shape, mesh.shape[FSDP])), tree)


def check_batch_size(batch_size: int, mesh: Mesh, name: str, parts: int = 1) -> None:
    """Raise InputError unless the global batch divides evenly over the devices, `parts` times. `name`: the config field."""
    if parts < 1:
        raise InputError(f"train.accumulate_steps is {parts}; expected at least 1")
    if batch_size < 1 or batch_size % (mesh.size * parts):
        each = f", {parts} times (train.accumulate_steps)" if parts > 1 else ""
        raise InputError(f"{name} is {batch_size}; expected a multiple of the {mesh.size} devices{each}")


def shard_batch(batch, mesh: Mesh):
    """A batch of this process's records (numpy leaves) as global arrays."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def split_batch(batch, parts: int, mesh: Mesh):
    """Inside jit: every leaf [B, ...] as [parts, B / parts, ...], without moving an example to another device.

    Part p holds rows p, p + parts, ... of the batch.
    """
    within = NamedSharding(mesh, PartitionSpec(None, (DATA, FSDP)))

    def split(leaf: jax.Array) -> jax.Array:
        pieces = leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(pieces, within)

    return jax.tree.map(split, batch)


def gather(tree, mesh: Mesh):
    """The tree whole on every device, whatever part of it each one has now. All processes must call it."""
    return jax.jit(lambda leaves: leaves, out_shardings=replicated(mesh))(tree)


def describe(mesh: Mesh) -> str:
    """For people: "8 devices, data 4 x fsdp 2, 2 processes"."""
    parts = [f"{mesh.size} device{'s' * (mesh.size > 1)}"]
    if mesh.shape[FSDP] > 1:
        parts.append(f"data {mesh.shape[DATA]} x fsdp {mesh.shape[FSDP]}")
    if jax.process_count() > 1:
        parts.append(f"{jax.process_count()} processes")
    return ", ".join(parts)


def is_first_process() -> bool:
    """Whether this process writes the files and talks to the user."""
    return jax.process_index() == 0


def on_all_processes(true: bool) -> bool:
    """Whether it is true on every one of the processes, all of which must ask."""
    return true if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(true)).all())


def sum_over_processes(number: int) -> int:
    """The sum of all processes' numbers, modulo 2**32; all of them must ask."""
    mine = np.array(number % 2**32, np.uint32)
    every = mine if jax.process_count() == 1 else multihost_utils.process_allgather(mine)
    return sum(map(int, np.ravel(every))) % 2**32


def wait_for_all(name: str) -> None:
    """Return when every process has come here, for the same `name`, however long the slowest takes.

    By the coordination service, not by a collective: those give up when a process, compiling perhaps, is half a minute late.
    """
    if jax.process_count() > 1:
        wait = multihost.get_barrier_sync_fn()
        assert wait is not None
        wait(key=name, timeout_ms=24 * 3600 * 1000)


def _split(shape: tuple[int, ...], parts: int) -> PartitionSpec:
    fitting = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or math.prod(shape) < SMALLEST_SPLIT or not fitting:
        return PartitionSpec()
    longest = max(fitting, key=lambda axis: shape[axis])
    return PartitionSpec(*[None] * longest, FSDP)


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isdecimal()
