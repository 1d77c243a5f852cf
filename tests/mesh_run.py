"""A few steps of the small network on several meshes of one process: python -m tests.mesh_run 1x1 4x2 ...

Prints JSON: for every mesh the losses and gradient norms, and the share of the state's bytes on its first device. Needs as
many devices as the largest mesh (XLA_FLAGS=--xla_force_host_platform_device_count=8).
"""

import json
import sys

import jax

from instancevg_jax import sharding
from instancevg_jax.config import TrainConfig
from tests import small


def main() -> None:
    config = small.config(TrainConfig(batch_size=8, ema_decay=0.9))
    batches = [small.batch(8, seed) for seed in range(4)]
    result = {}
    for name in sys.argv[1:]:
        data, fsdp = map(int, name.split("x"))
        mesh = sharding.make_mesh(data, fsdp, jax.devices()[: data * fsdp])
        state, metrics = small.steps(config, mesh, batches)
        leaves = jax.tree.leaves(state)
        on_first = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
        result[name] = {
            "loss": [step["loss"] for step in metrics],
            "grad_norm": [step["grad_norm"] for step in metrics],
            "share": on_first / sum(leaf.nbytes for leaf in leaves),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
