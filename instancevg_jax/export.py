"""Export a model as a program that runs without this package.

python -m instancevg_jax.export --checkpoint DIR --output FOLDER

FOLDER holds the program, its parameters, the tokenizer and run.py, which answers a sentence about a picture.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from instancevg_jax.errors import run_command


def main(argv: Sequence[str] | None = None) -> None:
    """The command. Raises InputError for whatever is wrong with its arguments or the files they name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint",
        help="checkpoint directory, run folder, official file or name; default: the built-in model of drawn shapes",
    )
    parser.add_argument("--output", required=True, type=Path, help="folder to write; it must not exist")
    parser.add_argument(
        "--platforms", default="cpu,cuda,tpu", help="platforms that can run the program (default: cpu,cuda,tpu)"
    )
    args = parser.parse_args(argv)

    from instancevg_jax.answers.export import write_stablehlo
    from instancevg_jax.answers.predictor import DEMO_CHECKPOINT, checkpoint_directory
    from instancevg_jax.checkpoint import load_model, load_tokenizer

    directory = checkpoint_directory(args.checkpoint or DEMO_CHECKPOINT)
    model, config = load_model(directory)
    tokenizer = load_tokenizer(directory).model_bytes
    write_stablehlo(model, config, tokenizer, args.output, tuple(args.platforms.split(",")))
    print(f'{args.output}: try it with: python {args.output}/run.py PICTURE "SENTENCE"')


if __name__ == "__main__":
    run_command(main)
