"""Speed on one accelerator: examples per second, model FLOP utilization (MFU), memory and compile time.

    python -m benchmarks.accelerator [--sizes base,large] [--batches 16,32,64,128] [--dtypes float32,bfloat16]
                                     [--torch-python PYTHON]

The rows are the forward pass and the training step (loss with matching, backward pass, clipping, optimizer) of the official
networks without dropout, on JAX's default device. With --torch-python the peer of `benchmarks.vs_torch` follows on the same card.
A batch that does not fit in memory is reported as such, and larger ones are left out. MFU is relative to --peak-tflops or, where
that is not given, to the rate of a large matrix product measured in the same process. The defaults are meant for ten minutes on
a GPU.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import sides
from benchmarks.flops import forward_flops
from benchmarks.vs_torch import SIZES, config_of, machine
from instancevg_jax import config as configs
from instancevg_jax.errors import InputError, run_command

COLUMNS = ("side", "size", "dtype", "job", "batch", "examples/s", "MFU", "GiB", "compile and first call s")


def measure(side: sides.Process, job: str, batch: int, seconds: float) -> tuple[float, float, float] | str:
    """Examples per second, peak bytes and the first call's seconds; or the error."""
    first = side.ask("prepare", what=job, batch=batch)
    if "error" in first:
        return first["error"]
    end, times, peak = time.monotonic() + seconds, [], 0
    while len(times) < 3 or time.monotonic() < end:
        answer = side.ask("run")
        if "error" in answer:
            return answer["error"]
        times.append(answer["seconds"])
        peak = answer["peak"]
    return batch / sorted(times)[len(times) // 2], peak, first["seconds"]


def rows(name: str, python: str, size: str, dtype: str, options: argparse.Namespace, folder: Path) -> None:
    """Print the rows of one side, size and dtype."""
    gflop = sum(forward_flops(config_of(size).model).values()) / 1e9
    with sides.process(name, folder, python) as side:
        if name == "ours" and options.torch_python:
            side.ask("weights")
        about = side.ask("about")["value"]
        rate = options.peak_tflops * 1e3 or side.ask("matmul")["value"]
        print(
            f"# {name}: {about['library']}, {about['device']}; MFU is relative to {rate / 1e3:.2f} TFLOP/s", flush=True
        )
        for job, factor in (("forward", 1), ("step", 3)):
            for batch in map(int, options.batches.split(",")):
                found = measure(side, job, batch, options.seconds)
                if isinstance(found, str):
                    print(f"| {name} | {size} | {dtype} | {job} | {batch} | {found} | | | |", flush=True)
                    break
                speed, peak, first = found
                used = f"{speed * gflop * factor / rate:.0%}"
                row = (name, size, dtype, job, str(batch), f"{speed:.1f}", used, f"{peak / 2**30:.1f}", f"{first:.1f}")
                print("| " + " | ".join(row) + " |", flush=True)


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accelerator", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--sizes", default="base,large", help=f"Sizes, separated by commas: {', '.join(SIZES)}.")
    parser.add_argument("--batches", default="16,32,64,128", help="Batch sizes, separated by commas, ascending.")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="Compute dtypes, separated by commas.")
    parser.add_argument("--seconds", type=float, default=3, help="Time per row, compilation aside.")
    parser.add_argument(
        "--peak-tflops", type=float, default=0, help="Peak of the device for MFU. 0: measure a matrix product."
    )
    parser.add_argument("--torch-python", default="", help="Python that has torch, numpy and scipy. Empty: no peer.")
    options = parser.parse_args(argv)
    sizes, dtypes = options.sizes.split(","), options.dtypes.split(",")
    for value, known, flag in (
        *((s, SIZES, "--sizes") for s in sizes),
        *((d, ("float32", "bfloat16"), "--dtypes") for d in dtypes),
    ):
        if value not in known:
            raise InputError(f"{flag} has {value!r}; expected one of {', '.join(known)}")
    print(machine())
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
    for size in sizes:
        for dtype in dtypes:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                (folder / "config.json").write_text(configs.to_json(config_of(size, dtype)))
                rows("ours", sys.executable, size, dtype, options, folder)
                if options.torch_python:
                    rows("torch", options.torch_python, size, dtype, options, folder)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
