"""The same run in float32 and in bfloat16, side by side: python -m benchmarks.precision [--steps 1000] [--config.FIELD=value ...]

Trains configs/shapes.py from the same seed on the same batches with both values of model.compute_dtype, and prints the loss of
every interval and the metrics of both. On a CPU bfloat16 is slower than float32; what is compared is learning, not speed.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from instancevg_jax import train
from instancevg_jax.errors import run_command

DTYPES = ("float32", "bfloat16")
METRICS = ("gIoU", "cIoU", "F1", "REC", "N_acc", "T_acc")


def rows(workdir: Path) -> list[dict]:
    """What a run logged."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def main(argv: Sequence[str]) -> None:
    """The command: trains twice and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    args, more = parser.parse_known_args(argv)
    logged = {}
    with tempfile.TemporaryDirectory() as folder:
        for dtype in DTYPES:
            workdir = Path(folder) / dtype
            settings = [f"--config.train.num_steps={args.steps}", f"--config.model.compute_dtype={dtype}", *more]
            train.main(["--config=configs/shapes.py", *settings, f"--workdir={workdir}"])
            logged[dtype] = rows(workdir)
    print(f"\n{'':12}" + "".join(dtype.rjust(10) for dtype in DTYPES))
    for both in zip(*logged.values(), strict=True):
        if both[0]["group"] == "train":
            print(f"loss, {both[0]['step']:5d} " + "".join(f"{row['loss']:10.3f}" for row in both))
        else:
            for name in METRICS:
                print(f"{name:12}" + "".join(f"{row[name]:10.2f}" for row in both))


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
