"""Annotations of a picture's stored pixels name the same object after --fix has rotated them as EXIF rotates the picture."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_pipelines import masks
from data_pipelines.prepare import prepare
from instancevg_jax.errors import InputError
from instancevg_jax.inputs.pictures import load_picture
from tests.data_pipelines.checking.run import Check, own, write_lines

BOX = (4, 6, 24, 20)  # of the red object in the stored pixels of 60 x 40
POLYGON = [[4, 6, 24, 6, 24, 20, 4, 20]]
STORED, SHOWN = (60, 40), (40, 60)  # (width, height)


@pytest.fixture
def turned(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A folder with a grey picture and a red object, of the EXIF orientation of the test's parameter."""
    folder = tmp_path / "images"
    folder.mkdir(exist_ok=True)
    pixels = np.full((40, 60, 3), 128, np.uint8)
    pixels[6:20, 4:24] = (255, 0, 0)
    exif = Image.Exif()
    exif[274] = request.param
    Image.fromarray(pixels).save(folder / "1.png", exif=exif)
    return folder


def red(path: Path) -> np.ndarray:
    """Where the object is in the picture as it is shown."""
    return load_picture(path)[..., 0] > 200


def run_lengths() -> dict[str, Any]:
    mask = masks.to_rle(POLYGON, 40, 60)
    return {"size": [40, 60], "counts": mask.counts}


@pytest.mark.parametrize("turned", [5, 6, 7, 8], indirect=True)
@pytest.mark.parametrize("target", [{"mask": POLYGON, "box": BOX}, {"mask": run_lengths(), "box": BOX}, {"box": BOX}])
def test_annotations_of_the_stored_pixels_are_rotated(
    tmp_path: Path, turned: Path, check: Check, target: dict[str, Any]
):
    path = write_lines(tmp_path / "own.jsonl", own("1.png", size=STORED, **target))
    with pytest.raises(
        InputError, match=r"annotations are of the picture before EXIF orientation \d rotates it to 40 x 60"
    ):
        prepare("custom", [path], turned, tmp_path / "out")
    found = check(path, turned)
    assert found.status == 1
    assert "annotated before EXIF rotation" in found.kinds
    assert "1 records rotated as EXIF rotates their picture" in found.out
    record = found.fixed[0]
    assert (record.width, record.height) == SHOWN
    thing, shown = record.instances[0], red(turned / "1.png")
    ys, xs = np.nonzero(shown)
    assert thing.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    if thing.segmentation:
        np.testing.assert_array_equal(masks.decode(masks.to_rle(thing.segmentation, 60, 40)).astype(bool), shown)
    again = tmp_path / "again.jsonl"
    (tmp_path / "new/fixed.jsonl").rename(again)
    assert check(again, turned).status == 0
    prepare("custom", [again], turned, tmp_path / "out")


@pytest.mark.parametrize("turned", [6], indirect=True)
@pytest.mark.parametrize(
    ("entry", "kind"),
    [
        (own("1.png", size=SHOWN, box=[4, 6, 24, 20]), ""),  # of the picture as it is shown
        (own("1.png", box=[4, 6, 24, 58]), ""),  # fits that one only
        (own("1.png"), ""),  # nothing is annotated
        (own("1.png", box=[4, 6, 58, 38]), "annotated before EXIF rotation"),
        (own("1.png", mask=run_lengths()), "annotated before EXIF rotation"),
        (own("1.png", box=[4, 6, 24, 20]), "EXIF rotation and no size stated"),
        (own("1.png", size=STORED, box=[4, 6, 24, 58]), "EXIF rotation and no size stated"),  # contradicts itself
        (own("1.png", size=(90, 90), box=[4, 6, 24, 20]), "size differs from the picture"),
    ],
)
def test_what_tells_the_frame(tmp_path: Path, turned: Path, check: Check, entry: dict[str, Any], kind: str):
    found = check(write_lines(tmp_path / "own.jsonl", entry), turned)
    assert {entry["fault"] for entry in found.listed if entry["level"] == "fault"} - {"mask without box"} == {kind} - {
        ""
    }
    assert len(found.fixed) == (kind in ("", "annotated before EXIF rotation"))


@pytest.mark.parametrize("turned", [2, 3, 4], indirect=True)
def test_mirrored_pictures_are_noted(tmp_path: Path, turned: Path, check: Check):
    found = check(write_lines(tmp_path / "own.jsonl", own("1.png", size=STORED, mask=POLYGON, box=BOX)), turned)
    assert (found.status, found.kinds) == (0, {"picture mirrored or turned by EXIF"})
