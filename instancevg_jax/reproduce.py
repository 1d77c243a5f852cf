"""Evaluate the official checkpoints under the official protocol, next to the published scores.

    python -m instancevg_jax.reproduce --data data/prepared --weights weights

--data is the directory that `prepare` wrote to. --weights holds the official files (InstanceVG-grefcoco.pth etc.) and beit3.spm;
each file is converted once, into the cache. Checkpoints that are already converted are directories named refcoco-base,
refcoco-large, grefcoco, refzom or rrefcoco, or like the official file. What is missing is listed.
reproduce.json and reproduce.html are written to --output after each split.
"""

import argparse
import datetime
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from instancevg_jax.errors import InputError, run_command
from instancevg_jax.files import check_writable

if TYPE_CHECKING:
    from instancevg_jax.evaluation import reproduce

NAMES = ("refcoco-base", "refcoco-large", "grefcoco", "refzom", "rrefcoco")


def main(argv: Sequence[str] | None = None) -> None:
    """The command. Raises InputError for bad arguments, or if no split of any checkpoint can be evaluated."""
    args = _parser().parse_args(argv)
    check_writable(args.output / "reproduce.json")

    from instancevg_jax.evaluation import reproduce
    from instancevg_jax.evaluation.evaluator import conditions
    from instancevg_jax.runtime import sharding
    from instancevg_jax.runtime.compilation import keep_compiled_programs

    keep_compiled_programs()
    figures = reproduce.load_figures(args.published)
    facts = {"Date": f"{datetime.datetime.now():%Y-%m-%d %H:%M}", "Data": str(args.data), "Weights": str(args.weights)}
    lines: list[reproduce.Comparison] = []
    missing: list[str] = []
    print(f"{'checkpoint':15s}{'split':24s}{'metric':12s}{'measured':>10s}{'published':>11s}{'difference':>12s}")
    for name in args.only or NAMES:
        try:
            directory = reproduce.find_checkpoint(args.weights, name)
            splits = reproduce.measure_splits(
                name, directory, args.data, sharding.make_mesh(), args.batch_size, missing
            )
            for config, evaluation in splits:
                new = reproduce.compare(name, evaluation, config.eval.task, figures)
                lines += new
                for line in new:
                    _print(line)
                facts |= {f"Conditions, {name}": conditions(config)}
                reproduce.write(args.output, lines, missing, facts)
        except InputError as error:
            missing.append(f"{name}: {error}")
    for text in missing:
        print(f"missing: {text}", file=sys.stderr)
    if not lines:
        raise InputError("nothing could be evaluated; what is missing is listed above")
    reproduce.write(args.output, lines, missing, facts)
    print(f"report: {args.output / 'reproduce.html'}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m instancevg_jax.reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", metavar="DIR", type=_path, required=True, help="directory that `prepare` wrote to")
    parser.add_argument(
        "--weights",
        metavar="DIR",
        type=_path,
        required=True,
        help="directory of official files or converted checkpoints",
    )
    parser.add_argument("--only", choices=NAMES, action="append", help="evaluate this checkpoint; may be repeated")
    parser.add_argument(
        "--output", metavar="DIR", type=_path, default=Path("reproduce"), help="where to write (default: reproduce)"
    )
    parser.add_argument(
        "--batch-size",
        metavar="N",
        type=int,
        default=16,
        help="over all devices; scores do not depend on it (default: 16)",
    )
    parser.add_argument(
        "--published",
        metavar="FILE",
        type=_path,
        default=Path(str(resources.files("configs") / "published.json")),
        help="published scores (default: configs/published.json)",
    )
    return parser


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _print(line: "reproduce.Comparison") -> None:
    values = (line.measured, line.published, line.difference)
    cells = (f"{value:.2f}" if value is not None else "-" for value in values)
    measured, published, difference = cells
    print(
        f"{line.checkpoint:15s}{line.split:24s}{line.metric:12s}{measured:>10s}{published:>11s}{difference:>12s}",
        flush=True,
    )


if __name__ == "__main__":
    run_command(main)
