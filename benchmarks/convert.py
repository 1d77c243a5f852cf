"""Seconds and memory of a conversion, against torch.load of the same file: python -m benchmarks.convert --size base|large ...

Needs the extra `torch`. The file has the official layout and size: the original's keys, random values, shared heads sharing their
storage, in torch's zip. `convert` reads it in a process of its own and writes a checkpoint directory; the peer only reads:
torch.load, then a sum over every tensor. Peak memory is the most that the process held resident, pages of the mapped file included.
"""

import argparse
import importlib.util
import multiprocessing
import os
import platform
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from convert import export
from convert.instancevg import TABLE
from convert.rules import to_source
from data_pipelines.shapes.dataset import TOKENIZER_PATH
from instancevg_jax import config as configs
from instancevg_jax.config import Config
from instancevg_jax.errors import InputError, run_command
from instancevg_jax.inputs.tokenizer import Tokenizer
from instancevg_jax.runtime.command_line import load_config

GIB = 2**30
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
TORCH = """
import sys, torch
state = torch.load(sys.argv[1], map_location="cpu", weights_only=True)["state_dict"]
print(sum(float(tensor.sum()) for tensor in state.values()))
"""


def settings(size: str, kind: str) -> Config:
    """The official run of that size and data set, or the parity fixtures' model."""
    return Config(model=configs.tiny()) if size == "tiny" else load_config(f"{kind}:{size}")


def make_file(path: Path, config: Config) -> None:
    """What the original's training saves, without its optimizer: {"state_dict": {"module.KEY": tensor}}."""
    import torch  # pyright: ignore[reportMissingImports]

    random = np.random.default_rng(0)
    shapes = export.expected_shapes(config)
    params = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    state = to_source(params, TABLE, export.unused_tensors(config), config.model.decoder_layers)
    arrays = {id(array): torch.from_numpy(np.ascontiguousarray(array)) for array in state.values()}
    tensors = {f"module.{key}": arrays[id(array)].reshape(array.shape) for key, array in state.items()}
    torch.save({"epoch": 9, "lr": 5e-5, "state_dict": tensors}, path)


def make_tokenizer(path: Path, ids: int, start: Path = TOKENIZER_PATH) -> None:
    """Write a sentencepiece model with `ids` ids: that of `start`, with pieces behind its own that no sentence contains."""
    model = start.read_bytes()
    for i in range(ids - Tokenizer.from_file(start).vocab_size):
        piece = f"filler{i}".encode()
        message = b"\n" + bytes([len(piece)]) + piece + b"\x15" + struct.pack("<f", -100)
        model += b"\n" + bytes([len(message)]) + message
    path.write_bytes(model)


def measure(command: Sequence[str | Path]) -> tuple[float, int]:
    """Seconds and peak resident bytes of a process. Raises InputError with what it says where it fails."""
    with tempfile.TemporaryFile("w+") as output:
        start = time.monotonic()
        process = subprocess.Popen([sys.executable, *map(str, command)], stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        if process.returncode:
            raise InputError(f"{command[1]} failed: {output.read().strip().splitlines()[-1]}")
    return seconds, usage.ru_maxrss * RSS_UNIT


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convert", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--size", choices=("base", "large", "tiny"), default="base")
    parser.add_argument("--kind", choices=("grefcoco", "refcoco"), help="default: refcoco for large, else grefcoco")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each; the fastest and the greatest peak count")
    parser.add_argument("--dir", help="where to write the files (3 times the weights); default: the temporary folder")
    args = parser.parse_args(argv)
    if importlib.util.find_spec("torch") is None:
        raise InputError("torch is not installed; expected the extra torch (pip install -e '.[torch]')")
    config = settings(args.size, args.kind or ("refcoco" if args.size == "large" else "grefcoco"))
    count = sum(int(np.prod(shape)) for shape in export.expected_shapes(config).values())
    with tempfile.TemporaryDirectory(dir=args.dir) as name:
        folder = Path(name)
        source, spm, settings_file = folder / "latest.pth", folder / "model.spm", folder / "config.json"
        # in a process of its own: a child's peak begins with what its parent holds
        maker = multiprocessing.get_context("spawn").Process(target=make_file, args=(source, config))
        maker.start()
        maker.join()
        if maker.exitcode:
            raise InputError(f"{source} was not made; expected room for it (see --dir)")
        make_tokenizer(spm, config.model.vocab_size)
        settings_file.write_text(configs.to_json(config))
        convert = ["-m", "convert", "instancevg", source, folder / "dir", "--config", settings_file, "--tokenizer", spm]
        commands = {"convert": convert, "torch.load": ["-c", TORCH, source]}
        print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
        print(f"{count:,} values, {4 * count / GIB:.2f} GiB; the file has {source.stat().st_size / GIB:.2f} GiB")
        print("what | seconds | peak GiB | peak / parameters", flush=True)
        for what, command in commands.items():
            runs = [measure(command) for _ in range(args.repeat)]
            seconds, peak = min(run[0] for run in runs), max(run[1] for run in runs)
            print(f"{what} | {seconds:.1f} | {peak / GIB:.2f} | {peak / (4 * count):.2f}", flush=True)


if __name__ == "__main__":
    run_command(main)
