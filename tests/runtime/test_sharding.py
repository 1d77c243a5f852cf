"""One step, one number, on whatever mesh: the losses of a run do not depend on how its arrays are split."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from instancevg_jax.errors import InputError
from instancevg_jax.runtime import sharding
from tests import oracle, quickly

ROOT = Path(__file__).parents[2]
RUN = [
    "--config=configs/shapes.py",
    "--config.model.image_height=32",
    "--config.model.image_width=32",
    "--config.model.patch_size=8",
    "--config.model.initialization=normal",
    "--config.model.width=32",
    "--config.model.depth=1",
    "--config.model.num_heads=2",
    "--config.model.mlp_dim=128",
    "--config.model.head_width=16",
    "--config.model.decoder_heads=2",
    "--config.model.decoder_mlp_dim=16",
    "--config.model.query_mlp_dim=16",
    "--config.data.num_eval_examples=11",
    "--config.eval.batch_size=8",
    "--config.train.batch_size=16",
    "--config.train.log_every=1",
    "--config.optim.name=adamw",
    "--config.optim.warmup_steps=10",
    "--config.optim.learning_rate=1e-5",
    "--config.optim.eps=1e-3",  # else a gradient that is rounding alone, a key's bias', moves its parameter by a whole step
    "--config.train.ema_decay=0.9",
]


def environment(devices: int) -> dict[str, str]:
    """Of a process with so many virtual devices.

    Each works through its program on one thread: with more, XLA's CPU devices may start collectives in different orders, and
    wait for each other until they give up. That is after forty seconds, which a loaded machine may take without it.
    """
    cache = str(oracle.HERE.parent / ".pytest_cache" / "xla")
    patience = "--xla_cpu_collective_call_terminate_timeout_seconds=300"
    devices_each = f"--xla_force_host_platform_device_count={devices} --xla_cpu_multi_thread_eigen=false"
    flags = f"{devices_each} {patience} {quickly.FLAGS}"
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": cache}


def launch(workdir: Path, devices: int, *arguments: str, processes: int = 1) -> list[subprocess.Popen[str]]:
    """A training run by the command, in one process or several that have `devices` each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "instancevg_jax.train", *RUN, *arguments, f"--workdir={workdir}"]
    joining = [[f"--distributed=127.0.0.1:{port},{number},{processes}"] for number in range(processes)]
    settings: dict[str, Any] = {"cwd": ROOT, "env": environment(devices), "stdout": subprocess.PIPE, "text": True}
    return [subprocess.Popen([*command, *more], **settings) for more in (joining if processes > 1 else [[]])]


def train(workdir: Path, devices: int, *arguments: str, processes: int = 1) -> list[dict]:
    """The lines of metrics.jsonl of a run that goes well."""
    running = launch(workdir, devices, *arguments, processes=processes)
    printed = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0] * processes, printed
    assert "parameters" in printed[0]
    assert not [text for text in printed[1:] if "parameters" in text or "step" in text], "only the first process speaks"
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(lines: list[dict]) -> list[float]:
    return [line["loss"] for line in lines if line["group"] == "train"]


def test_losses_are_the_same_on_one_device_and_on_both_axes():
    command = [sys.executable, "-m", "tests.runtime.mesh_run", "1x1", "2x2"]
    printed = subprocess.run(command, cwd=ROOT, env=environment(4), check=True, capture_output=True, text=True).stdout
    result = json.loads(printed)
    np.testing.assert_allclose(result["2x2"]["loss"], result["1x1"]["loss"], rtol=1e-5)
    np.testing.assert_allclose(result["2x2"]["grad_norm"], result["1x1"]["grad_norm"], rtol=1e-4)
    assert result["2x2"]["collectives_in_loops"] == []
    assert result["1x1"]["share"] == 1
    assert result["2x2"]["same_fingerprint"]
    assert 0.5 <= result["2x2"]["share"] < 0.8  # half, but for leaves below SMALLEST_SPLIT


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_steps_by_the_command_on_five_meshes(tmp_path):
    """Losses to 1e-5, and the same evaluation, from one device to two processes of four; only process 0 writes and speaks."""
    steps = "--config.train.num_steps=20"
    expected = train(tmp_path / "one", 1, steps)
    assert len(losses(expected)) == 20
    runs = {
        "data": train(tmp_path / "data", 8, steps),
        "fsdp": train(tmp_path / "fsdp", 8, steps, "--config.train.mesh_fsdp=8"),
        "both": train(tmp_path / "both", 8, steps, "--config.train.mesh_data=4", "--config.train.mesh_fsdp=2"),
        "processes": train(tmp_path / "processes", 4, steps, "--config.train.mesh_fsdp=2", processes=2),
        "fsdp_processes": train(tmp_path / "fsdp_processes", 4, steps, "--config.train.mesh_fsdp=8", processes=2),
    }
    for name, lines in runs.items():
        np.testing.assert_allclose(losses(lines), losses(expected), rtol=1e-5, err_msg=name)
        for metric in ("gIoU", "cIoU", "REC"):
            np.testing.assert_allclose(lines[-1][metric], expected[-1][metric], rtol=1e-3, err_msg=name)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_state_saved_on_eight_devices_goes_on_on_one(tmp_path):
    expected = train(tmp_path / "whole", 1, "--config.train.num_steps=20")
    train(tmp_path / "parts", 8, "--config.train.num_steps=10", "--config.train.mesh_fsdp=8")
    lines = train(tmp_path / "parts", 1, "--config.train.num_steps=20")
    assert [line["step"] for line in lines if line["group"] == "train"] == list(range(1, 21))
    np.testing.assert_allclose(losses(lines), losses(expected), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_signal_to_one_of_two_processes_ends_both_after_the_same_step(tmp_path):
    """Both exit with status 0, and the run resumes from the state that they saved."""
    arguments = ("--config.train.num_steps=24",)
    running = launch(tmp_path, 2, *arguments, processes=2)
    assert running[0].stdout is not None
    for line in running[0].stdout:
        if line.startswith("step 4/"):
            running[1].send_signal(signal.SIGTERM)
            break
    printed = running[0].communicate()[0]
    running[1].communicate()
    assert [process.returncode for process in running] == [0, 0]
    assert "stopped by a signal" in printed
    stopped = max(int(path.name) for path in (tmp_path / "state").iterdir())
    assert 4 <= stopped < 24
    lines = train(tmp_path, 2, *arguments, processes=2)
    assert [line["step"] for line in lines if line["group"] == "train"] == list(range(1, 25))


def test_the_longest_axis_that_divides_is_split():
    mesh = jax.sharding.AbstractMesh((1, 4), (sharding.DATA, sharding.FSDP))
    leaves = {
        "long": jax.ShapeDtypeStruct((64, 256), np.float32),
        "odd": jax.ShapeDtypeStruct((1026, 64), np.float32),
        "small": jax.ShapeDtypeStruct((8, 8), np.float32),
        "indivisible": jax.ShapeDtypeStruct((4097,), np.float32),
        "scalar": jax.ShapeDtypeStruct((), np.int32),
    }
    specs = {name: s.spec for name, s in sharding.split_sharding(leaves, mesh).items()}
    assert specs["long"] == PartitionSpec(None, sharding.FSDP)
    assert specs["odd"] == PartitionSpec(None, sharding.FSDP)
    assert specs["small"] == specs["indivisible"] == specs["scalar"] == PartitionSpec()


@pytest.mark.parametrize(("data", "fsdp"), [(3, 1), (0, 2)])
def test_a_mesh_must_use_every_device(data, fsdp):
    with pytest.raises(
        InputError, match=f"train.mesh_data is {data}, train.mesh_fsdp is {fsdp}; expected a product of 1"
    ):
        sharding.make_mesh(data, fsdp, jax.devices()[:1])


def test_the_batch_must_divide():
    with pytest.raises(InputError, match=r"train\.batch_size is 3; expected a multiple of .* times 2"):
        sharding.check_batch_size(3, sharding.make_mesh(), "train.batch_size", 2)


@pytest.mark.parametrize("where", ["here", "host:1", "host:1,0", "host,0,2", "host:1,2,2", "host:1,a,2"])
def test_an_address_that_is_none(where):
    with pytest.raises(InputError, match="--distributed is"):
        sharding.join_processes(where)


def test_parts_of_a_batch_interleave():
    mesh = sharding.make_mesh()
    pieces = jax.jit(lambda x: sharding.split_batch(x, 2, mesh))(np.arange(8))
    np.testing.assert_array_equal(pieces, [[0, 2, 4, 6], [1, 3, 5, 7]])
