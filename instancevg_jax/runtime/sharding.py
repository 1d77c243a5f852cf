"""Sharding: `jax.jit` over one mesh with the axes `data` and `fsdp`, from a single device to many hosts.

Batches are split over both axes. Parameters, optimizer state and averages are replicated along `data` and split along `fsdp`: a
mesh of n x 1 is data parallel, 1 x n is fully sharded ("FSDP"), and others combine both.
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
SMALLEST_SPLIT = 4096  # elements; replicating smaller arrays costs less than gathering their shards


def join_processes(where: str) -> None:
    """Make this process one of several. Call it before anything asks JAX for a device.

    `where`: "COORDINATOR_HOST:PORT,PROCESS_ID,NUM_PROCESSES", where the coordinator is process 0; "auto" on a cluster that JAX
    recognizes (TPU pods, Slurm, Open MPI, Kubernetes); or "" for a single process. Raises InputError for anything else.
    """
    if not where:
        return
    if where == "auto":
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise InputError(
                f"--distributed=auto: no cluster was recognized ({error}); expected HOST:PORT,PROCESS_ID,NUM_PROCESSES"
            ) from error
        return
    address, *numbers = where.split(",")
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers) or not _is_address(address):
        raise InputError(
            f"--distributed is {where!r}; expected auto or HOST:PORT,PROCESS_ID,NUM_PROCESSES such as 10.0.0.1:1234,0,2"
        )
    process, count = map(int, numbers)
    if process >= count:
        raise InputError(f"--distributed is {where!r}; expected a PROCESS_ID below NUM_PROCESSES, which is {count}")
    jax.distributed.initialize(address, num_processes=count, process_id=process)


def make_mesh(data: int = 0, fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of data x fsdp over `devices`, by default all devices of all processes. `data` 0: all devices not used by `fsdp`.

    Raises InputError if the product is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if (data or len(devices) // fsdp) * fsdp != len(devices):
        raise InputError(
            f"train.mesh_data is {data}, train.mesh_fsdp is {fsdp}; expected a product of {len(devices)}, the number of "
            "devices (mesh_data 0: all that mesh_fsdp leaves)"
        )
    shape = (data or len(devices) // fsdp, fsdp)
    return jax.make_mesh(shape, (DATA, FSDP), axis_types=(AxisType.Auto, AxisType.Auto), devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec((DATA, FSDP)))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays that every device has a full copy of."""
    return NamedSharding(mesh, PartitionSpec())


def place(tree, mesh: Mesh):
    """A tree of which every process has a full copy (numpy or local arrays) as global arrays, sharded by `split_sharding`."""

    def put(leaf, sharding: NamedSharding) -> jax.Array:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree, split_sharding(tree, mesh))


def split_sharding(tree, mesh: Mesh):
    """The sharding of each leaf of parameters or of a training state. It depends on the leaf's shape alone.

    A leaf is split along its longest axis that `fsdp` divides. Leaves without such an axis, and those of less than
    `SMALLEST_SPLIT` elements, are replicated.
    """
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _split(leaf.shape, mesh.shape[FSDP])), tree)


def check_batch_size(batch_size: int, mesh: Mesh, name: str, parts: int = 1) -> None:
    """Raise InputError unless each of the `parts` of a global batch divides evenly over the devices.

    `name`: the config field that states `batch_size`.
    """
    if batch_size % (mesh.size * parts):
        each = f" times {parts} (train.accumulate_steps)" if parts > 1 else ""
        raise InputError(f"{name} is {batch_size}; expected a multiple of the number of devices, {mesh.size}{each}")


def shard_batch(batch, mesh: Mesh):
    """This process's share of a batch (numpy leaves) as global arrays."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def split_batch(batch, parts: int, mesh: Mesh):
    """Inside jit, reshape every leaf [B, ...] to [parts, B / parts, ...] without moving examples between devices.

    Part p holds rows p, p + parts, ... of the batch.
    """
    within = NamedSharding(mesh, PartitionSpec(None, (DATA, FSDP)))

    def split(leaf: jax.Array) -> jax.Array:
        pieces = leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(pieces, within)

    return jax.tree.map(split, batch)


def gather(tree, mesh: Mesh):
    """The tree, replicated on every device. All processes must call it."""
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
    """Whether this is the process that writes files and prints."""
    return jax.process_index() == 0


def on_all_processes(value: bool) -> bool:
    """Whether `value` is true on every process. All processes must call it."""
    return value if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(value)).all())


def sum_over_processes(number: int) -> int:
    """The sum of all processes' numbers, modulo 2**32. All processes must call it."""
    mine = np.array(number % 2**32, np.uint32)
    every = mine if jax.process_count() == 1 else multihost_utils.process_allgather(mine)
    return sum(map(int, np.ravel(every))) % 2**32


def wait_for_all(name: str) -> None:
    """Return when every process has called this with the same `name`, after up to a day.

    It uses the coordination service, since a collective gives up if one process, perhaps compiling, is half a minute late.
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
