"""Ask a model about pictures, from the command line.

    python -m instancevg_jax.predict --image street.jpg --expression "the two people on the left" --output answer.png

Imports that take seconds stand inside functions: `--help` and bad arguments are answered at once.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from instancevg_jax.errors import InputError, run_command
from instancevg_jax.files import write_atomically
from instancevg_jax.inputs.pictures import load_picture
from instancevg_jax.inputs.text import clean_expression

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def main(argv: Sequence[str] | None = None) -> None:
    """The command. Raises InputError for whatever is wrong with its arguments or the files they name."""
    args = _parser().parse_args(argv)
    cleaned = clean_expression(args.expression)
    outputs = _output_paths(args.output, args.image) if args.output else None
    pictures = [load_picture(path) for path in args.image]

    from instancevg_jax.answers.draw import draw_grounding
    from instancevg_jax.answers.predictor import Predictor, grounding_to_json

    predictor = Predictor.from_pretrained(args.checkpoint)
    _warn_if_cut(predictor.tokenizer.num_pieces(cleaned), predictor.config.model.max_tokens - 2)
    groundings = predictor.predict_batch(pictures, [args.expression] * len(pictures), args.score_threshold)
    if outputs:
        for path, picture, grounding in zip(outputs, pictures, groundings, strict=True):
            _write_picture(path, draw_grounding(picture, grounding, args.expression))
    results = [
        {"image": image, **grounding_to_json(grounding)}
        for image, grounding in zip(args.image, groundings, strict=True)
    ]
    if args.json:
        _print(json.dumps({"expression": args.expression, "results": results}, ensure_ascii=False))
    else:
        _print("\n".join(_summary(result) for result in results))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m instancevg_jax.predict", description="Find what a sentence means in pictures."
    )
    parser.add_argument("--checkpoint", metavar="DIR", help="checkpoint directory; without it, the small demo model")
    parser.add_argument("--image", metavar="FILE", nargs="+", required=True, help="one picture or several")
    parser.add_argument("--expression", metavar="TEXT", required=True, help="the sentence")
    parser.add_argument(
        "--output",
        metavar="FILE|DIR",
        help=f"where to draw the answer: a picture ({' '.join(PICTURE_SUFFIXES)}), or a folder, which several pictures need",
    )
    parser.add_argument("--json", action="store_true", help="print boxes, scores, points and masks (COCO RLE) as JSON")
    parser.add_argument(
        "--score-threshold",
        metavar="X",
        type=float,
        help="a box counts above this score, 0 to 1; default: the checkpoint's",
    )
    return parser


def _output_paths(output: str, images: Sequence[str]) -> list[Path]:
    """One file for every picture; none is written twice or over a picture that is read."""
    path = Path(output)
    is_folder = path.is_dir() or output.endswith("/") or not path.suffix
    if is_folder:
        paths = [path / f"{Path(image).stem}.png" for image in images]
        names = [p.name for p in paths]
        paths = [
            p if names.count(p.name) == 1 else p.with_stem(f"{p.stem}-{names[: i + 1].count(p.name)}")
            for i, p in enumerate(paths)
        ]
    elif len(images) > 1:
        raise InputError(f"--output {output} is one file for {len(images)} pictures; expected a folder")
    elif path.suffix.lower() not in PICTURE_SUFFIXES:
        raise InputError(f"--output {output}: cannot write {path.suffix}; expected one of {' '.join(PICTURE_SUFFIXES)}")
    else:
        paths = [path]
    for parent in [*([path] if is_folder else []), *path.parents]:
        if parent.exists() and not parent.is_dir():
            raise InputError(f"--output {output}: {parent} is a file; expected a folder")
    read = {Path(image).resolve() for image in images}
    for path in paths:
        if path.resolve() in read:
            raise InputError(f"--output would overwrite {path}, which is read; expected another name")
    return paths


def _warn_if_cut(pieces: int, most: int) -> None:
    if pieces > most:
        print(f"note: the expression has {pieces} tokens; the model reads the first {most}", file=sys.stderr)


def _write_picture(path: Path, picture: np.ndarray) -> None:
    done, data = cv2.imencode(path.suffix.lower(), np.ascontiguousarray(picture[..., ::-1]))
    if not done:
        raise InputError(
            f"{path}: a picture of {picture.shape[1]} x {picture.shape[0]} cannot be written as {path.suffix}"
        )
    try:
        write_atomically(path, data.tobytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error


def _summary(result: dict) -> str:
    lines = [f"{result['image']}: {len(result['objects'])} found, no target p = {result['no_target_probability']:.3f}"]
    for found in result["objects"]:
        box = " ".join(f"{value:.1f}" for value in found["box_xyxy"])
        lines.append(f"  score {found['score']:.3f}  box {box}")
    return "\n".join(lines)


def _print(text: str) -> None:
    """Print what may hold a file's name that is not UTF-8: its odd bytes as \\udcXX, which JSON understands."""
    print(text.encode("utf-8", "backslashreplace").decode())


if __name__ == "__main__":
    run_command(main)
