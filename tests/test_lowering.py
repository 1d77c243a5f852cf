"""Every official config lowers for GPUs and TPUs: forward pass, training step and post-processing, on one device and on a mesh.

Nothing is computed and no parameter is made; what XLA makes of the programs on such a device is not tested here.
"""

import os
import subprocess
import sys

import jax
import pytest
from flax import nnx

from benchmarks.memory import abstract_batch, abstract_step
from configs import grefcoco, refcoco, refzom, rrefcoco
from instancevg_jax.answers.postprocess import postprocess
from instancevg_jax.config import Config
from instancevg_jax.models.instancevg import InstanceVG
from instancevg_jax.runtime import sharding

PLATFORMS = ["cuda", "tpu"]
CONFIGS = {
    "grefcoco": grefcoco.get_config,
    "refcoco": refcoco.get_config,
    "refcoco:large": lambda: refcoco.get_config("large"),
    "refzom": refzom.get_config,
    "rrefcoco": rrefcoco.get_config,
}


def fewer_blocks(config: Config) -> Config:
    """All blocks are alike; two of them keep the lowering short."""
    config.model.depth = 2
    return config


def lower(function, *arguments) -> None:
    exported = jax.export.export(function, platforms=PLATFORMS)(*arguments)
    assert set(exported.platforms) == set(PLATFORMS)


@pytest.mark.parametrize(("name", "dtype"), [*((name, "bfloat16") for name in CONFIGS), ("grefcoco", "float32")])
def test_answers(name, dtype):
    config = fewer_blocks(CONFIGS[name]())
    config.model.compute_dtype = dtype
    graph, state = nnx.split(nnx.eval_shape(lambda: InstanceVG(config.model, rngs=nnx.Rngs(0))))
    batch = abstract_batch(config)

    def answer(state, images, token_ids, token_mask):
        return postprocess(nnx.merge(graph, state)(images, token_ids, token_mask), config.eval)

    lower(jax.jit(answer), state, batch.images, batch.token_ids, batch.token_mask)


def lower_step(name: str, data: int, fsdp: int) -> None:
    config = fewer_blocks(CONFIGS[name]())
    config.model.compute_dtype = "bfloat16"
    mesh = sharding.make_mesh(data, fsdp, jax.devices()[: data * fsdp])
    state, step = abstract_step(config, mesh)
    lower(step, state, abstract_batch(config, mesh))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "grefcoco" else pytest.mark.slow) for name in CONFIGS]
)
def test_training_step(name):
    lower_step(name, 1, 1)


@pytest.mark.slow
def test_training_steps_on_a_mesh():
    """Data parallel and with split parameters at once, in a process with four devices."""
    program = (
        f"from tests import test_export as t; [t.lower_step(name, 2, 2) for name in {list(CONFIGS)}]; print('lowered')"
    )
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "4"}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert result.stdout.endswith("lowered\n"), result.stderr
