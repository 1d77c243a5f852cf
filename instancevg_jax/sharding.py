"""Data parallelism: `jax.jit` over a mesh. Batches are split along their first axis, everything else is replicated."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from instancevg_jax.errors import InputError


def make_mesh() -> Mesh:
    """All devices of all processes on one axis, `data`."""
    return Mesh(np.array(jax.devices()), ("data",))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """For leaves whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """For parameters, optimizer state and scalars."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch_size(batch_size: int, mesh: Mesh, name: str) -> None:
    """Raise InputError unless the global batch divides evenly over the devices. `name`: the config field."""
    if batch_size < 1 or batch_size % mesh.size:
        raise InputError(f"{name} is {batch_size}; expected a multiple of the {mesh.size} devices")


def shard_batch(batch, mesh: Mesh):
    """A batch of this process's records (numpy leaves) as global arrays."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)
