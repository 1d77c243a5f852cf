"""Draw a scene of the embedded data set and print its sentence.

python -m data_pipelines.draw_shapes --index 7 --output scene.png
"""

import argparse
from collections.abc import Sequence

import cv2
import numpy as np

from data_pipelines.shapes.dataset import LEVELS, SPLITS, ShapesDataset
from instancevg_jax.errors import InputError, run_command
from instancevg_jax.files import write_atomically


def main(argv: Sequence[str] | None = None) -> None:
    """The command. Raises InputError for a size or an index outside the data set's range."""
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines.draw_shapes",
        description="Draw a scene of the embedded data set and print its sentence.",
    )
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--level", choices=LEVELS, default="basic")
    parser.add_argument("--index", type=int, default=0, help="number of the scene, from 0")
    parser.add_argument("--size", type=int, default=96, help="height and width in pixels, 32 to 4096")
    parser.add_argument("--truth", action="store_true", help="draw the targets next to the picture")
    parser.add_argument("--output", required=True, metavar="FILE.png")
    args = parser.parse_args(argv)
    if not args.output.lower().endswith(".png"):
        raise InputError(f"--output {args.output}: expected a file name that ends in .png")
    try:
        scene = ShapesDataset(args.split, args.level, (args.size, args.size))[args.index]
    except IndexError as error:
        raise InputError(f"--index: {error}") from error
    picture = scene.image
    if args.truth:
        picture = np.concatenate([picture, np.where(scene.mask[..., None], picture, picture // 4)], axis=1)
    done, data = cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))
    if not done:
        raise InputError(f"--output {args.output}: the picture cannot be written")
    write_atomically(args.output, data.tobytes())
    print(scene.expression)


if __name__ == "__main__":
    run_command(main)
