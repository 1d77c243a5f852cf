"""Both sides of `benchmarks.vs_torch` and `benchmarks.accelerator`, this project and the torch peer, each in its own process.

    python -m benchmarks.sides ours|torch FOLDER

reads jobs from standard input, one JSON object per line, and answers each with one line. FOLDER holds config.json; our side
writes the parameters there (job "weights"), and both write their outputs when a forward pass is prepared. The torch side imports
no JAX, so it may run in an environment of its own. Every sentence fills half of its tokens.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from instancevg_jax.runtime.allocator import release_freed_memory

MATMUL = 2048
JOBS = ("forward", "decide", "step")


def make_batch(model: Any, size: int, slots: int) -> dict[str, np.ndarray]:
    """Noise with 0 to 3 rectangular targets per example, from a fixed seed."""
    rng = np.random.default_rng(0)
    height, width, tokens = model.image_height, model.image_width, model.max_tokens
    valid = np.arange(slots) < np.arange(size)[:, None] % 4
    centre, extent = rng.uniform(0.35, 0.65, (size, slots, 2)), rng.uniform(0.1, 0.5, (size, slots, 2))
    boxes = (np.concatenate([centre, extent], -1) * valid[..., None]).astype(np.float32)
    low, high = centre - extent / 2, centre + extent / 2
    ys, xs = np.mgrid[:height, :width]
    y, x = ys / height, xs / width
    inside = [
        (x >= low[..., 0, None, None]),
        (x < high[..., 0, None, None]),
        (y >= low[..., 1, None, None]),
        (y < high[..., 1, None, None]),
    ]
    masks = np.logical_and.reduce(inside) & valid[..., None, None]
    return {
        "images": rng.standard_normal((size, height, width, 3)).astype(np.float32),
        "ids": rng.integers(5, model.vocab_size, (size, tokens)).astype(np.int32),
        "token_mask": np.broadcast_to(np.arange(tokens) < max(tokens // 2, model.num_queries), (size, tokens)).copy(),
        "boxes": boxes,
        "valid": valid,
        "masks": masks,
        "mask": masks.any(1),
    }


def timed(function: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def reset_peak() -> None:
    """Start the process's peak of resident memory anew, where Linux allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_resident() -> int:
    """Bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


class Ours:
    """This project on JAX's default device."""

    def __init__(self, folder: Path):
        import jax
        from flax import nnx

        from instancevg_jax import config as configs
        from instancevg_jax.models.instancevg import InstanceVG
        from instancevg_jax.training import train_state

        self.jax, self.folder = jax, folder
        self.config = configs.load(folder / "config.json")
        model = InstanceVG(self.config.model, rngs=nnx.Rngs(0))
        self.graph, self.params, self.stats = train_state.split_model(model)
        self.state: Any = None

    def about(self) -> dict[str, str]:
        """Versions and device."""
        device = self.jax.devices()[0]
        return {"library": f"jax {self.jax.__version__}", "device": f"{device.platform} {device.device_kind}"}

    def weights(self) -> dict[str, Any]:
        """Write the parameters for the other side."""
        tree = self.jax.tree_util.tree_flatten_with_path((self.params, self.stats))[0]
        flat = {"/".join(str(key.key) for key in path[1:]): np.asarray(leaf) for path, leaf in tree}
        np.savez(self.folder / "params.npz", **flat)
        return {}

    def matmul(self) -> float:
        """GFLOP/s of a square product in the compute dtype."""
        from instancevg_jax.models.layers import DTYPES

        x = self.jax.numpy.ones((MATMUL, MATMUL), DTYPES[self.config.model.compute_dtype])
        product = self.jax.jit(lambda x: x @ x)
        product(x).block_until_ready()
        return 2 * MATMUL**3 / min(timed(lambda: product(x).block_until_ready()) for _ in range(7)) / 1e9

    def prepare(self, job: str, size: int) -> Callable[[], Any]:
        """The job on a batch of `size`, compiled; a call waits for the result."""
        from flax import nnx

        from instancevg_jax.answers.postprocess import postprocess

        batch = make_batch(self.config.model, size, self.config.data.max_targets)
        inputs = self.jax.device_put((batch["images"], batch["ids"], batch["token_mask"]))

        def forward(params: Any, stats: Any, *inputs: Any) -> Any:
            return nnx.merge(self.graph, params, stats, copy=True)(*inputs)

        if job == "step":
            return self._step(batch)
        run = self.jax.jit(forward).lower(self.params, self.stats, *inputs).compile()
        outputs = run(self.params, self.stats, *inputs)
        if job == "forward":
            fields = {name: np.asarray(value) for name, value in vars(outputs).items()}
            np.savez(self.folder / "outputs_ours.npz", **fields)
            return lambda: self.jax.block_until_ready(run(self.params, self.stats, *inputs))
        decide = self.jax.jit(lambda outputs: postprocess(outputs, self.config.eval)).lower(outputs).compile()
        return lambda: self.jax.block_until_ready(decide(outputs))

    def _step(self, arrays: dict[str, np.ndarray]) -> Callable[[], Any]:
        from instancevg_jax.runtime import sharding
        from instancevg_jax.training import train_state
        from instancevg_jax.training.optim import make_optimizer
        from instancevg_jax.types import Batch, Targets

        mesh = sharding.make_mesh(1, 1, self.jax.devices()[:1])
        size = len(arrays["images"])
        targets = Targets(**{name: arrays[name] for name in ("boxes", "valid", "masks", "mask")})
        batch = Batch(
            images=arrays["images"],
            token_ids=arrays["ids"],
            token_mask=arrays["token_mask"],
            targets=targets,
            example_weight=np.ones(size, np.float32),
            item=np.arange(size, dtype=np.int32),
        )
        batch = sharding.shard_batch(batch, mesh)
        params = self.params if self.state is None else self.state.params
        optimizer = make_optimizer(self.config.optim, params, steps_per_epoch=1000, num_steps=10_000)
        if self.state is None:
            self.state = train_state.create(params, self.stats, optimizer, 0.0, mesh)
            self.params = self.stats = params = None  # the state owns them
        step = (
            train_state.make_train_step(self.graph, self.config, optimizer, mesh, self.state)
            .lower(self.state, batch)
            .compile()
        )
        release_freed_memory()  # as training does

        def run() -> float:
            self.state, metrics = step(self.state, batch)
            return float(metrics["loss"])

        return run

    def peak(self) -> int:
        """Peak bytes: of the device, or resident ones on CPU."""
        statistics = self.jax.devices()[0].memory_stats() or {}
        return statistics.get("peak_bytes_in_use") or peak_resident()


class Torch:
    """The peer, on a GPU where torch finds one."""

    def __init__(self, folder: Path):
        from benchmarks import torch_peer

        def section(values: dict[str, Any]) -> Any:
            return types.SimpleNamespace(**values)

        self.peer, self.torch, self.folder = torch_peer, torch_peer.torch, folder
        self.config = section({k: section(v) for k, v in json.loads((folder / "config.json").read_text()).items()})
        self.device = self.torch.device("cuda" if self.torch.cuda.is_available() else "cpu")
        self.model = torch_peer.Peer(self.config.model)
        with np.load(folder / "params.npz") as params:
            torch_peer.load(self.model, dict(params))
        self.model = self.model.to(self.device)
        self.optimizer: Any = None

    def about(self) -> dict[str, str]:
        """Versions and device."""
        gpu = self.device.type == "cuda"
        name = self.torch.cuda.get_device_name() if gpu else f"cpu, {self.torch.get_num_threads()} threads"
        return {"library": f"torch {self.torch.__version__}", "device": name}

    def weights(self) -> dict[str, Any]:
        """Nothing: they come from the other side."""
        return {}

    def _cast(self) -> Any:
        half = self.config.model.compute_dtype == "bfloat16"
        return self.torch.autocast(self.device.type, self.torch.bfloat16) if half else contextlib.nullcontext()

    def _wait(self, value: Any = None) -> Any:
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()
        return value

    def matmul(self) -> float:
        """GFLOP/s of a square product in the compute dtype."""
        dtype = getattr(self.torch, self.config.model.compute_dtype)
        x = self.torch.ones(MATMUL, MATMUL, dtype=dtype, device=self.device)
        return 2 * MATMUL**3 / min(timed(lambda: self._wait(x @ x)) for _ in range(7)) / 1e9

    def prepare(self, job: str, size: int) -> Callable[[], Any]:
        """The job on a batch of `size`; a call waits for the result."""
        batch = make_batch(self.config.model, size, self.config.data.max_targets)
        arrays = {name: self.torch.from_numpy(value).to(self.device) for name, value in batch.items()}
        inputs = (arrays["images"].permute(0, 3, 1, 2).contiguous(), arrays["ids"].long(), arrays["token_mask"])

        def forward() -> Any:
            with self.torch.inference_mode(), self._cast():
                return self._wait(self.model(*inputs))

        if job == "step":
            return self._step(inputs, {name: arrays[name] for name in ("boxes", "valid", "masks", "mask")})
        self.model.eval()
        outputs = forward()
        if job == "forward":
            np.savez(self.folder / "outputs_torch.npz", **{k: v.float().cpu().numpy() for k, v in outputs.items()})
            return forward
        return lambda: self._wait(self.peer.decide(outputs, self.config.eval))

    def _step(self, inputs: Any, targets: dict[str, Any]) -> Callable[[], Any]:
        targets |= {name: targets[name].float() for name in ("masks", "mask")}
        self.model.train()
        self.optimizer = self.optimizer or self.peer.optimizer(self.model, self.config.optim)
        warm_up = 1 / 1000  # of the learning rate, as in our first steps

        def run() -> float:
            self.optimizer.zero_grad(set_to_none=True)
            with self._cast():
                outputs = self.model(*inputs)
            loss = self.peer.loss(outputs, targets, self.config.loss)
            loss.backward()
            self.torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip_norm)
            for group, scale in zip(self.optimizer.param_groups, (self.config.optim.backbone_scale, 1.0), strict=True):
                group["lr"] = self.config.optim.learning_rate * scale * warm_up
            self.optimizer.step()
            return self._wait(float(loss.detach()))

        return run

    def peak(self) -> int:
        """Peak bytes: of the GPU, or resident ones on CPU."""
        return self.torch.cuda.max_memory_allocated() if self.device.type == "cuda" else peak_resident()


def serve(name: str, folder: Path) -> None:
    """Answer jobs until standard input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print does not mix with the answers
    side = {"ours": Ours, "torch": Torch}[name](folder)
    run: Any = None
    for line in sys.stdin:
        job = json.loads(line)
        try:
            if job["job"] == "prepare":
                run = None
                release_freed_memory()
                reset_peak()
                seconds = time.perf_counter()
                run = side.prepare(job["what"], job["batch"])
                first = run()
                answer: Any = {
                    "seconds": time.perf_counter() - seconds,
                    "value": first if isinstance(first, float) else None,
                }
            elif job["job"] == "run":
                answer = {"seconds": timed(run), "peak": side.peak()}
            else:
                answer = {"value": getattr(side, job["job"])()}
        except (RuntimeError, MemoryError) as error:  # out of memory: the next batch size may fit
            answer = {"error": str(error).splitlines()[0][:200]}
        print(json.dumps(answer), file=answers, flush=True)


class Process:
    """A side in a process of its own."""

    def __init__(self, name: str, folder: Path, python: str = sys.executable):
        command = [python, "-m", "benchmarks.sides", name, str(folder)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
        )

    def ask(self, job: str, **details: Any) -> dict[str, Any]:
        """The answer to one job. RuntimeError if the process ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"job": job, **details}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process for {self._process.args!r} ended with status {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@contextlib.contextmanager
def process(name: str, folder: Path, python: str = sys.executable) -> Iterator[Process]:
    """A side that ends with the block."""
    side = Process(name, folder, python)
    try:
        yield side
    finally:
        side.close()


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]))
