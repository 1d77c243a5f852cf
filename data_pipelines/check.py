"""Check annotations and pictures for faults before training, and optionally write a repaired copy or drawings.

    python -m data_pipelines.check grefcoco --annotations grefs/instance.json --images train2014 --fix cleaned.jsonl

Prints how many records, sentences, pictures and objects each split has, and how often each kind of fault was found.
Exit status: 0 no fault, 1 faults were found, 2 a file cannot be read at all.
"""

import sys
from pathlib import Path

from instancevg_jax.errors import run_command


def main() -> None:
    """The command."""
    from data_pipelines.command_line import (
        parser_of,
    )  # here, so that Ctrl-C while modules load ends the command cleanly

    parser = parser_of("check", __doc__ or "")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="sentencepiece model; counts long sentences and unknown words"
    )
    parser.add_argument(
        "--max-tokens", type=int, help="model.max_tokens of the config (default: 20 for refcoco, else 50)"
    )
    parser.add_argument("--max-targets", type=int, default=10, help="data.max_targets of the config (default: 10)")
    parser.add_argument(
        "--protocol",
        choices=("official", "strict"),
        help="eval.protocol of the config (default: strict for custom, which keeps objects without a mask; else official)",
    )
    parser.add_argument("--fix", type=Path, metavar="OUT", help="write a repaired copy of the annotations, as .jsonl")
    parser.add_argument(
        "--list", type=Path, metavar="FILE", help="write every fault and what --fix does about it, as .jsonl"
    )
    parser.add_argument("--draw", type=Path, metavar="DIR", help="draw annotations on their pictures, as JPEG files")
    parser.add_argument("--split", default="", help="split to draw (default: all)")
    parser.add_argument("--num", type=int, default=20, help="number of records to draw (default: 20)")
    args = parser.parse_args()

    from data_pipelines.checking.command import run

    sys.exit(run(args))


if __name__ == "__main__":
    run_command(main)
