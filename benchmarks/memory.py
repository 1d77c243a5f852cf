"""Bytes of device memory that a training step needs, as XLA plans them: python -m benchmarks.memory [--sizes base,large] ...

Nothing is computed and no parameter is made: the step is compiled for shapes on virtual CPU devices. The plan is the CPU
compiler's, which other backends only resemble: it is exact for the state, and for the rest a comparison of meshes. It says
nothing of recomputation, which makes no difference to it, nor of bfloat16, whose products it computes in float32. For those
there is a table of what the gradient's trace saves, with no compiler in it.
"""

import argparse
import itertools
import math
import sys
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from configs import grefcoco, refcoco
from instancevg_jax.config import Config
from instancevg_jax.errors import InputError, run_command
from instancevg_jax.models import layers
from instancevg_jax.models.instancevg import InstanceVG
from instancevg_jax.objective.losses import count
from instancevg_jax.runtime import sharding
from instancevg_jax.training import train_state
from instancevg_jax.training.optim import make_optimizer
from instancevg_jax.types import Batch, Targets

COLUMNS = ("size", "devices", "mesh", "batch/device", "state GiB")
COMPILED_COLUMNS = ("temporary GiB", "compile s")
GIB = 2**30
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # of code that is never run


def settings(size: str, batch_size: int) -> Config:
    """The official gRefCOCO run (base), or RefCOCO's (large), at a batch size."""
    config = refcoco.get_config("large") if size == "large" else grefcoco.get_config()
    config.train.batch_size = batch_size
    return config


def abstract_batch(config: Config, mesh: jax.sharding.Mesh | None = None) -> Batch:
    """Shapes of a global batch, split over the mesh if there is one."""
    model, size, slots = config.model, config.train.batch_size, config.data.max_targets
    picture = (model.image_height, model.image_width)

    def array(shape: tuple[int, ...], dtype: type) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size, *shape), dtype, sharding=mesh and sharding.batch_sharding(mesh))

    return Batch(
        images=array((*picture, 3), jnp.float32),
        token_ids=array((model.max_tokens,), jnp.int32),
        token_mask=array((model.max_tokens,), jnp.bool_),
        targets=Targets(
            boxes=array((slots, 4), jnp.float32),
            valid=array((slots,), jnp.bool_),
            masks=array((slots, *picture), jnp.bool_),
            mask=array(picture, jnp.bool_),
        ),
        example_weight=array((), jnp.float32),
        item=array((), jnp.int32),
    )


def kept(size: str, remat: str, dtype: str) -> float:
    """GiB that each example of a batch keeps from the forward to the backward pass: what the gradient's trace saves."""

    def saved(batch_size: int) -> int:
        config = settings(size, batch_size)
        config.model.remat, config.model.compute_dtype = remat, dtype
        model = nnx.eval_shape(lambda: InstanceVG(config.model, rngs=nnx.Rngs(0)))
        graph, params, stats = train_state.split_model(model)
        loss_fn = train_state.make_loss_fn(graph, config)

        def pull_back(params, stats, batch, key):
            counts = count(batch.targets, config.model.num_queries, config.loss)
            return jax.vjp(lambda p: loss_fn(p, stats, batch, key, counts), params, has_aux=True)[1]

        function = jax.eval_shape(pull_back, params, stats, abstract_batch(config), jax.random.key(0))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(function))

    return (saved(4) - saved(2)) / 2 / GIB  # what is saved of the parameters cancels out


def abstract_step(config: Config, mesh: jax.sharding.Mesh) -> tuple[train_state.TrainState, train_state.Step]:
    """Shapes of a run's state, split over the mesh, and its step."""
    model = nnx.eval_shape(lambda: InstanceVG(config.model, rngs=nnx.Rngs(0)))
    graph, params, stats = train_state.split_model(model)
    optimizer = make_optimizer(config.optim, params, steps_per_epoch=1, num_steps=1)
    state = train_state.abstract(params, stats, optimizer, config.train.ema_decay, mesh)
    return state, train_state.make_train_step(graph, config, optimizer, mesh, state)


def state_on_device(state: train_state.TrainState) -> float:
    """GiB of a state that each device holds."""
    leaves = jax.tree.leaves(state)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves) / GIB


def temporary(step: train_state.Step, state: train_state.TrainState, batch: Batch) -> tuple[float, float]:
    """GiB per device of everything that lives only during a step, and the seconds it took to compile."""
    start = time.monotonic()
    memory = step.lower(state, batch).compile(FAST).memory_analysis()
    return memory.temp_size_in_bytes / GIB, time.monotonic() - start


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--sizes", default="base", help="base, large or both, by commas")
    parser.add_argument("--devices", default="1,8,64", help="numbers of devices, by commas")
    parser.add_argument("--batch-per-device", type=int, default=2)
    parser.add_argument("--state-only", action="store_true", help="compile nothing, which takes minutes per row")
    args = parser.parse_args(argv)
    counts = [int(count) for count in args.devices.split(",")]
    sizes = args.sizes.split(",")
    for size in sizes:
        if size not in ("base", "large"):
            raise InputError(f"--sizes has {size!r}; expected base or large")
    jax.config.update("jax_num_cpu_devices", max(counts))
    print("size | compute dtype | remat | GiB per example kept for the backward pass", flush=True)
    for size, dtype in itertools.product(sizes, ("float32", "bfloat16")):
        for remat in layers.REMAT:
            print(size, dtype, remat, f"{kept(size, remat, dtype):.3f}", sep=" | ", flush=True)
    print(*COLUMNS, *(() if args.state_only else COMPILED_COLUMNS), sep=" | ", flush=True)
    for size in sizes:
        for devices in counts:
            for data, fsdp in dict.fromkeys([(devices, 1), (1, devices)]):
                mesh = sharding.make_mesh(data, fsdp, jax.devices()[:devices])
                config = settings(size, args.batch_per_device * devices)
                state, step = abstract_step(config, mesh)
                row = (size, devices, f"{data} x {fsdp}", args.batch_per_device, f"{state_on_device(state):.2f}")
                if args.state_only:
                    print(*row, sep=" | ", flush=True)
                    continue
                during, seconds = temporary(step, state, abstract_batch(config, mesh))
                print(*row, f"{during:.2f}", f"{seconds:.0f}", sep=" | ", flush=True)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
