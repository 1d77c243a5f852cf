"""Make the pictures of the README and the docs: python -m benchmarks.pictures --report runs/demo/report/report.html

    answers.png   three scenes of the test split, answered by the built-in model, which is right about each
    report.png    the top of an evaluation's report
    page.png      the page of `instancevg serve` with an answer

The latter two need playwright and Chromium. `make demo` writes the report.
"""

import argparse
import io
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from data_pipelines.shapes.dataset import ShapesDataset
from instancevg_jax.answers.draw import BAR, draw_grounding
from instancevg_jax.answers.predictor import Predictor
from instancevg_jax.errors import InputError, run_command
from instancevg_jax.files import write_atomically
from instancevg_jax.serving.app import Limits, create_app
from instancevg_jax.serving.model import Model
from instancevg_jax.serving.server import running

SCENES = (15, 41, 107)  # of split test, level full: one object, several, none
SIDE, GAP, WIDTH = 480, 12, 1152  # pixels
LEVELS = 64  # of each colour: half the bytes of 256, and looks the same
WINDOW = {"width": 1280, "height": 1000}


def main(argv: Sequence[str] | None = None) -> None:
    """The command. Raises InputError where there is no report or no Chromium."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pictures", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("docs/images"), help="folder (default: docs/images)")
    parser.add_argument("--report", type=Path, required=True, metavar="FILE.html", help="report.html of an evaluation")
    args = parser.parse_args(argv)
    if not args.report.is_file():
        raise InputError(f"--report {args.report}: no such file; expected the report.html of an evaluation")
    predictor = Predictor.from_pretrained()
    _write(args.output / "answers.png", Image.fromarray(answers(predictor)))
    with _browser() as browser:
        page = browser.new_page(viewport=WINDOW)
        page.goto(args.report.resolve().as_uri())
        _write(args.output / "report.png", _photograph(page))
        with running(create_app(Model(predictor), Limits())) as address:
            page.goto(address)
            page.click("#examples button")
            page.wait_for_function("document.querySelector('#answers').innerText.includes('object')", timeout=60_000)
            _write(args.output / "page.png", _photograph(page))


def answers(predictor: Predictor) -> np.ndarray:
    """The scenes with their answers, next to each other, WIDTH pixels wide: [H, WIDTH, 3] uint8 RGB."""
    scenes = ShapesDataset("test", "full", (SIDE, SIDE))
    drawn = []
    for index in SCENES:
        scene = scenes[index]
        grounding = predictor.predict(scene.image, scene.expression)
        if len(grounding) != len(scene.referents):
            raise InputError(f"scene {index} is answered with {grounding.verdict}; choose another one in SCENES")
        drawn.append(draw_grounding(scene.image, grounding, scene.expression))
    height = max(map(len, drawn))
    padded = [
        cv2.copyMakeBorder(panel, 0, height - len(panel), 0, 0, cv2.BORDER_CONSTANT, value=BAR) for panel in drawn
    ]
    gap = np.full((height, GAP, 3), 255, np.uint8)
    row = np.concatenate([part for panel in padded for part in (gap, panel)][1:], axis=1)
    return cv2.resize(row, (WIDTH, round(height * WIDTH / row.shape[1])), interpolation=cv2.INTER_AREA)


@contextmanager
def _browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise InputError("there is no Chromium on the PATH, which makes report.png and page.png")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


def _photograph(page: Any) -> Image.Image:
    page.wait_for_timeout(500)  # images are decoded
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def _write(path: Path, picture: Image.Image) -> None:
    data = io.BytesIO()
    step = 256 // LEVELS
    picture.point([min(255, round(value / step) * step) for value in range(256)] * 3).save(data, "PNG", optimize=True)
    write_atomically(path, data.getvalue())
    print(f"{path}: {picture.width} x {picture.height} pixels, {len(data.getvalue()) / 1000:.0f} kB")


if __name__ == "__main__":
    run_command(main)
