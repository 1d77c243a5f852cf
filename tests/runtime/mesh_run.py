"""A few steps of the small network on several meshes of one process: python -m tests.runtime.mesh_run 1x1 4x2 ...

Prints JSON: for every mesh the losses and gradient norms, the share of the state's bytes on its first device, whether its
fingerprint is that of the same state on one device, and the collectives within loops of the compiled step. Needs as many devices
as the largest mesh (XLA_FLAGS=--xla_force_host_platform_device_count=8).
"""

import json
import re
import sys

import jax

from instancevg_jax.config import TrainConfig
from instancevg_jax.runtime import sharding
from instancevg_jax.training.resume import fingerprint
from tests import small

COLLECTIVE = re.compile(r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(-start)?\(")


def collectives_in_loops(text: str) -> list[str]:
    """Lines of a compiled program's text that are collectives in the body or the condition of a loop."""
    loops = re.findall(r" while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)", text)
    assert loops, "the matching has some"
    within = {name for loop in loops for name in loop}
    found, current = [], ""
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            current = line.removeprefix("ENTRY ").lstrip("%").split(" ")[0]
        elif current in within and COLLECTIVE.search(line):
            found.append(line.strip())
    return found


def main() -> None:
    config = small.config(TrainConfig(batch_size=8, ema_decay=0.9))
    batches = [small.batch(8, seed) for seed in range(4)]
    result = {}
    for name in sys.argv[1:]:
        data, fsdp = map(int, name.split("x"))
        mesh = sharding.make_mesh(data, fsdp, jax.devices()[: data * fsdp])
        state, step = small.compiled(config, mesh, batches[0])
        within = collectives_in_loops(step.as_text())
        state, metrics = small.walk(state, step, mesh, batches)
        leaves = jax.tree.leaves(state)
        on_first = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
        result[name] = {
            "loss": [step["loss"] for step in metrics],
            "grad_norm": [step["grad_norm"] for step in metrics],
            "collectives_in_loops": within,
            "share": on_first / sum(leaf.nbytes for leaf in leaves),
            "same_fingerprint": fingerprint(state) == fingerprint(jax.device_put(state, jax.devices()[0])),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
