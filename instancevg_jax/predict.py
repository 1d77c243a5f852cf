"""Find what sentences refer to in pictures, from the command line.

    python -m instancevg_jax.predict --image street.jpg --expression "the two people on the left" --output answer.png

Imports that take seconds are inside functions, so that `--help` and bad arguments are answered at once.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from instancevg_jax.answers.questions import Destination, Question, destinations, expand, read_list
from instancevg_jax.errors import InputError, run_command
from instancevg_jax.inputs.text import clean_expression

if TYPE_CHECKING:
    from instancevg_jax.answers.listing import Answered
    from instancevg_jax.answers.predictor import Predictor

EXAMPLES = """examples:
  predict --image shapes.png --expression "the red circle" --output answer.png
  predict --checkpoint instancevg-grefcoco --image photos/ --expression "a dog" "a person" --output answers/
  predict --checkpoint DIR --list pairs.jsonl --format jsonl --masks masks/ > answers.jsonl

Without --checkpoint, the built-in model answers, which knows drawn shapes only. A query counts as an object above the score
threshold, for models trained on RefCOCO too; `evaluate` instead follows each benchmark's rule, under which a RefCOCO model's
best query always counts. Exit status: 0; 1 if some questions failed, listed at the end; 2 for bad usage."""


def main(argv: Sequence[str] | None = None) -> None:
    """The command. Raises InputError for whatever is wrong with its arguments, and for its only question's failure."""
    args = _parser().parse_args(argv)
    questions = _questions(args)
    targets = destinations(questions, args.output, args.explain, args.masks)

    from instancevg_jax.answers.listing import render
    from instancevg_jax.answers.predictor import Predictor
    from instancevg_jax.runtime.compilation import keep_compiled_programs

    keep_compiled_programs()
    predictor = Predictor.from_pretrained(args.checkpoint, batch_size=args.batch_size)
    failures: list[str] = []
    answered = _answer(predictor, questions, targets, args, failures)
    sentences = {question.expression for question in questions}
    for text in render(
        "json" if args.json else args.format, answered, sentences.pop() if len(sentences) == 1 else None
    ):
        tqdm.write(text.encode("utf-8", "backslashreplace").decode(), end="")  # file names need not be UTF-8
    if failures:
        print(f"error: {len(failures)} of {len(questions)} questions failed:", *failures, sep="\n  ", file=sys.stderr)
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m instancevg_jax.predict",
        description="Find what sentences refer to in pictures: boxes, masks, scores, or that nothing is meant.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--checkpoint",
        metavar="SOURCE",
        help="checkpoint directory, run folder, official weights file, or name of known weights",
    )
    add(
        "--image",
        metavar="PATH",
        nargs="+",
        help="pictures: files, folders (searched with subfolders), quoted patterns",
    )
    add("--expression", metavar="TEXT", nargs="+", action="extend", help="sentences, each asked about every picture")
    add("--list", metavar="FILE", type=Path, help="questions instead: .jsonl or .csv with 'image' and 'expression'")
    add("--output", metavar="FILE|DIR", help="draw the answers: a picture file for one question, or a folder")
    add("--explain", metavar="FILE|DIR", help="draw where the network looks, and all its queries; named as --output")
    add("--masks", metavar="DIR", help="write masks as PNG: DIR/NAME/mask.png, merged, and DIR/NAME/object-1.png, ...")
    add("--format", choices=("text", "json", "jsonl", "coco"), default="text", help="what is printed (default: text)")
    add("--json", action="store_true", help="the same as --format json")
    add(
        "--score-threshold",
        metavar="X",
        type=float,
        help="a query counts above this score, 0 to 1 (default: the checkpoint's)",
    )
    add(
        "--nms",
        metavar="X",
        type=float,
        help="suppress objects that overlap a better one by a greater box IoU; 0: none",
    )
    add("--top-k", metavar="N", type=int, help="largest number of objects per question (default: no limit)")
    add(
        "--mask",
        choices=("merge", "global", "instance"),
        help="what the merged mask consists of (default: the checkpoint's)",
    )
    add("--batch-size", metavar="N", type=int, help="questions per call of the network, at most (default: 8)")
    return parser


def _questions(args: argparse.Namespace) -> list[Question]:
    """What to ask, pictures in the outer loop so that each is read once."""
    if args.list:
        if args.image or args.expression:
            raise InputError("--list replaces --image and --expression; expected one or the other")
        return read_list(args.list)
    if not (args.image and args.expression):
        raise InputError("nothing to ask; expected --image and --expression, or --list")
    for expression in args.expression:
        clean_expression(expression)
    return [Question(image, expression) for image in expand(args.image) for expression in args.expression]


def _answer(
    predictor: "Predictor",
    questions: list[Question],
    targets: list[Destination],
    args: argparse.Namespace,
    failures: list[str],
) -> Iterator["Answered"]:
    """Every question's answer, with its files written. The failures of several questions are collected, that of one is raised."""
    from instancevg_jax.answers.listing import Answered

    answers = predictor.predict_many(
        questions, score_threshold=args.score_threshold, nms_threshold=args.nms, top_k=args.top_k, mask=args.mask
    )
    printed = set(predictor.notes)
    progress = tqdm(answers, total=len(questions), unit="question", disable=True if len(questions) == 1 else None)
    for question, target, answer in zip(questions, targets, progress, strict=True):
        if isinstance(answer, InputError):
            if len(questions) == 1:
                raise answer
            where = "" if str(answer).startswith(question.image) else f"{question.image}: "
            failures.append(f"{where}{answer} (asked: {question.expression!r})")
            yield Answered(question, answer, {})
            continue
        for note in answer.notes:
            if note not in printed:
                tqdm.write(f"note: {note}", file=sys.stderr)
                printed.add(note)
        yield Answered(question, answer, target.write(answer))


if __name__ == "__main__":
    run_command(main)
