"""This project against plain torch on one machine: time, memory and compilation of forward pass, post-processing and training step.

    python -m benchmarks.vs_torch --torch-python PATH/TO/python [--sizes base,large] [--batches 1,4,8] [--rounds 5] [--output FILE]

Both sides run as processes of one tree, with the same weights, inputs and threads, and take turns; outputs and the first training
loss are compared before anything is measured. Each row gives medians (minimum - maximum) and the share of the floor that each side
reaches: the arithmetic of the row divided by the matrix product rate measured on the same side. torch may live in an environment of
its own, which needs only torch, numpy and scipy.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import sides
from benchmarks.flops import forward_flops
from benchmarks.memory import settings
from instancevg_jax import config as configs
from instancevg_jax.errors import InputError, run_command

SIZES = ("tiny", "base", "large")
COLUMNS = (
    "size",
    "job",
    "batch",
    "torch s",
    "ours s",
    "torch / ours",
    "torch floor",
    "ours floor",
    "torch GiB",
    "ours GiB",
    "first call s",
)
# largest absolute differences between the outputs of both sides, several times the parity tests'
TOLERANCES = {"mask_logits": 1e-3, "class_logits": 5e-4, "boxes": 5e-5, "existence_logits": 2e-4, "points": 1e-6}
LOSS_TOLERANCE = 1e-4  # relative


def config_of(size: str, dtype: str = "float32") -> configs.Config:
    """The official run of a size without dropout; "tiny" is for trying the command."""
    config = settings("base" if size == "tiny" else size, 1)
    if size == "tiny":
        config.model = configs.tiny()
    config.model.drop_path = config.model.head_dropout = 0.0
    config.model.compute_dtype, config.model.pretrained = dtype, ""
    return config


def cpu_model() -> str:
    """As Linux names it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.processor())


def largest_differences(folder: Path) -> dict[str, float]:
    """Of each output, between both sides."""
    with np.load(folder / "outputs_ours.npz") as ours, np.load(folder / "outputs_torch.npz") as theirs:
        return {name: float(abs(ours[name] - theirs[name]).max()) for name in theirs.files}


def compare(pair: dict[str, sides.Process], folder: Path) -> None:
    """Print how far outputs and first loss agree; InputError where they do not."""
    for side in pair.values():
        side.ask("prepare", what="forward", batch=2)
    differences = largest_differences(folder)
    print(
        "largest differences of outputs: " + ", ".join(f"{name} {value:.1e}" for name, value in differences.items()),
        flush=True,
    )
    for name, allowed in TOLERANCES.items():
        if differences[name] > allowed:
            raise InputError(
                f"{name} of the two sides differ by {differences[name]:.1e}; expected at most {allowed:.0e}"
            )


def row(pair: dict[str, sides.Process], job: str, batch: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each side, taking turns, with the peak of memory and the first call's seconds."""
    found: dict[str, list[float]] = {}
    losses = {}
    for name, side in pair.items():
        first = side.ask("prepare", what=job, batch=batch)
        if "error" in first:
            raise InputError(f"{name}, {job}, batch {batch}: {first['error']}")
        found[f"{name} first"], losses[name] = [first["seconds"]], first["value"]
        found[name] = []
    if job == "step":
        found["losses"] = list(losses.values())
    for _ in range(rounds):
        for name, side in pair.items():
            answer = side.ask("run")
            found[name].append(answer["seconds"])
            found[f"{name} peak"] = [answer["peak"] / 2**30]
    return found


def spread(seconds: Sequence[float]) -> str:
    """Median (minimum - maximum)."""
    return f"{statistics.median(seconds):.3f} ({min(seconds):.3f} - {max(seconds):.3f})"


def measure(size: str, batches: Sequence[int], rounds: int, python: str) -> list[list[str]]:
    """All rows of a size."""
    config = config_of(size)
    gflop = sum(forward_flops(config.model).values()) / 1e9
    rows, first_losses = [], None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(configs.to_json(config))
        with sides.process("ours", folder) as ours:
            ours.ask("weights")
            with sides.process("torch", folder, python) as theirs:
                pair = {"torch": theirs, "ours": ours}
                about = {key: side.ask("about")["value"] for key, side in pair.items()}
                print(
                    f"\n{size}: "
                    + "; ".join(f"{key}: {value['library']}, {value['device']}" for key, value in about.items())
                )
                compare(pair, folder)
                rates = {key: side.ask("matmul")["value"] for key, side in pair.items()}
                print(
                    "matrix products: " + ", ".join(f"{key} {rate:.0f} GFLOP/s" for key, rate in rates.items()),
                    flush=True,
                )
                for job in sides.JOBS:
                    for batch in batches:
                        found = row(pair, job, batch, rounds)
                        if job == "step" and first_losses is None:
                            first_losses = found["losses"]
                            print("first loss: " + ", ".join(f"{loss:.6f}" for loss in first_losses), flush=True)
                            if abs(first_losses[0] / first_losses[1] - 1) > LOSS_TOLERANCE:
                                raise InputError(f"first losses differ by more than {LOSS_TOLERANCE:.0e} of their size")
                        rows.append(cells(size, job, batch, found, gflop * batch, rates))
                        print("| " + " | ".join(rows[-1]) + " |", flush=True)
    return rows


def cells(
    size: str, job: str, batch: int, found: dict[str, list[float]], gflop: float, rates: dict[str, float]
) -> list[str]:
    """One row of the table."""
    arithmetic = {"forward": gflop, "step": 3 * gflop}.get(
        job
    )  # a backward pass takes two products for each of the forward's
    medians = {name: statistics.median(found[name]) for name in rates}
    shares = [f"{arithmetic / rates[name] / medians[name]:.0%}" if arithmetic else "-" for name in rates]
    memory = [f"{found[f'{name} peak'][0]:.2f}" for name in rates]
    first = " / ".join(f"{found[f'{name} first'][0]:.1f}" for name in rates)
    ratio = f"{medians['torch'] / medians['ours']:.2f}"
    return [size, job, str(batch), spread(found["torch"]), spread(found["ours"]), ratio, *shares, *memory, first]


def machine() -> str:
    """One line about the machine."""
    return (
        f"{cpu_model()}, {len(os.sched_getaffinity(0))} cores, {platform.system()}, Python {platform.python_version()}"
    )


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vs_torch", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--torch-python", default=sys.executable, help="Python that has torch, numpy and scipy. Default: this one."
    )
    parser.add_argument("--sizes", default="base", help=f"Sizes, separated by commas: {', '.join(SIZES)}.")
    parser.add_argument("--batches", default="1,4,8", help="Batch sizes, separated by commas.")
    parser.add_argument("--rounds", type=int, default=5, help="Measurements per side and row.")
    parser.add_argument(
        "--output", type=Path, help="Markdown file to write the table to, e.g. benchmarks/results/NAME.md."
    )
    options = parser.parse_args(argv)
    batches, sizes = [int(batch) for batch in options.batches.split(",")], options.sizes.split(",")
    for size in sizes:
        if size not in SIZES:
            raise InputError(f"--sizes has {size!r}; expected one of {', '.join(SIZES)}")
    print(machine())
    rows = [one for size in sizes for one in measure(size, batches, options.rounds, options.torch_python)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in (COLUMNS, ["---"] * len(COLUMNS), *rows)) + "\n"
    print("\n" + table)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(f"{machine()}\n\nSeconds: median (minimum - maximum) of {options.rounds}.\n\n{table}")


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
