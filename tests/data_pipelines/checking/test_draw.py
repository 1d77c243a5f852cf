from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data_pipelines.checking.run import Check, own, write_lines
from tests.data_pipelines.make import HEIGHT, POLYGON, WIDTH


def test_annotations_are_drawn_below_a_caption(tmp_path: Path, images: Path, check: Check):
    names = ["1.jpg", "2.jpg", "lost.jpg", "3.jpg"]
    entries = [own(name, "the dög 龍", box=[10, 10, 30, 30], mask=POLYGON) | {"split": "val"} for name in names]
    path = write_lines(tmp_path / "own.jsonl", own("1.jpg"), *entries)
    found = check(path, images, "--draw", tmp_path / "drawn", "--split", "val", "--num", 2)
    drawings = sorted((tmp_path / "drawn").iterdir())
    assert [path.name for path in drawings] == ["00000-own.jsonl_line_2.jpg", "00001-own.jsonl_line_3.jpg"]
    assert f"{tmp_path / 'drawn'}: 2 pictures" in found.out
    with Image.open(drawings[0]) as drawing, Image.open(images / "1.jpg") as before:
        band = drawing.height - HEIGHT
        shown = np.asarray(drawing)[band:, :WIDTH].astype(int)
        change = np.abs(shown - np.asarray(before)).sum(-1)
    assert band > 20
    assert change[12:28, 12:28].min() > 30  # the mask
    assert shown[10, 20, 0] > 180  # the outline of the box
    assert change[20:, 40:50].max() < 60


def test_broken_annotations_are_drawn_as_far_as_they_go(tmp_path: Path, images: Path, check: Check):
    path = write_lines(tmp_path / "own.jsonl", own(box=[50, 30, -400, 900], mask=[[1, 1, 2, 2]]))
    check(path, images, "--draw", tmp_path / "drawn")
    assert len(list((tmp_path / "drawn").iterdir())) == 1


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "LA", "CMYK"])
def test_pictures_of_every_mode_are_drawn_on(tmp_path: Path, images: Path, check: Check, mode: str):
    name = "1.tiff" if mode == "CMYK" else "1.png"
    Image.new(mode, (WIDTH, HEIGHT)).save(images / name)
    path = write_lines(tmp_path / "own.jsonl", own(name, box=[10, 10, 30, 30], mask=POLYGON))
    assert check(path, images, "--draw", tmp_path / "drawn").status == 0
    assert len(list((tmp_path / "drawn").iterdir())) == 1
