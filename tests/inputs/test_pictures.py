"""Pictures: equal to the original's (F8), and sensible on whatever a user hands over."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from instancevg_jax.errors import InputError
from instancevg_jax.inputs.pictures import load_picture, prepare_picture
from tests import oracle


@pytest.fixture
def rgb() -> np.ndarray:
    """A smooth picture, 40 high and 60 wide, red growing to the right and green downwards."""
    y, x = np.mgrid[:40, :60]
    return np.stack([x * 4, y * 6, np.full_like(x, 90)], -1).astype(np.uint8)


def save(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("size", ["64x64", "33x47"])
@pytest.mark.parametrize("source", [1, 2, 3, 4])
def test_resize_equals_the_originals_bit_for_bit(source: int, size: str):
    fixture = oracle.fixture("f8_transforms")
    width, height = map(int, size.split("x"))
    prepared = prepare_picture(np.ascontiguousarray(fixture[f"src_{source}"][..., ::-1]), height, width)
    pixels = prepared * np.float32([58.395, 57.12, 57.375]) + np.float32([123.675, 116.28, 103.53])
    expected = fixture[f"resize_{source}_{size}"][..., ::-1]
    np.testing.assert_array_equal(np.rint(pixels), expected)
    np.testing.assert_allclose(pixels, expected, atol=1e-4, rtol=0)


def test_normalized_picture_equals_the_originals():
    fixture = oracle.fixture("f8_transforms")
    prepared = prepare_picture(np.ascontiguousarray(fixture["src_4"][..., ::-1]), 26, 64)
    assert prepared.dtype == np.float32
    np.testing.assert_allclose(prepared, fixture["keepratio_norm_pad32"][:26], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("name", "size", "step"), [("f8_pipeline64", 64, 1), ("f8_pipeline320", 320, 4)])
def test_file_to_network_input_equals_the_originals(name: str, size: int, step: int, tmp_path: Path):
    """From an encoded file, through the whole path. The fixture names its pictures by image id."""
    sizes = {1: (48, 80), 2: (101, 61), 3: (64, 64), 4: (37, 90)}
    prepared = {}
    for image_id, (height, width) in sizes.items():
        cv2.imwrite(str(tmp_path / f"{image_id}.png"), oracle.recipe().make_picture(image_id, height, width))
        picture = prepare_picture(load_picture(tmp_path / f"{image_id}.png"), size, size)
        prepared[image_id] = picture.transpose(2, 0, 1)[:, ::step, ::step]
    images = [value for key, value in oracle.fixture(name).items() if key.endswith("_img")]
    assert len(images) > 4
    for image in images:
        assert min(np.abs(image - ours).max() for ours in prepared.values()) <= 1e-6


def test_jpeg_pixels_are_opencvs(rgb: np.ndarray, tmp_path: Path):
    path = save(tmp_path / "a.jpg", Image.fromarray(rgb))
    np.testing.assert_array_equal(load_picture(path), cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1])


def test_grey_palette_and_bilevel_become_rgb(rgb: np.ndarray, tmp_path: Path):
    for mode in ("L", "P", "1"):
        image = Image.fromarray(rgb).convert(mode)
        path = save(tmp_path / f"{mode}.png", image)
        np.testing.assert_array_equal(load_picture(path), np.asarray(image.convert("RGB")))
        np.testing.assert_array_equal(load_picture(image), np.asarray(image.convert("RGB")))


def test_cmyk_looks_like_its_rgb(rgb: np.ndarray, tmp_path: Path):
    for name in ("a.jpg", "a.tif"):
        path = save(tmp_path / name, Image.fromarray(rgb).convert("CMYK"))
        assert np.abs(load_picture(path).astype(int) - rgb).max() <= 12


def test_16_bit_keeps_the_high_byte(rgb: np.ndarray, tmp_path: Path):
    deep = rgb.astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / "deep.png"), deep[..., ::-1])
    cv2.imwrite(str(tmp_path / "grey.png"), deep[..., 0])
    np.testing.assert_array_equal(load_picture(tmp_path / "deep.png"), rgb)
    np.testing.assert_array_equal(load_picture(deep), rgb)
    grey = np.repeat(rgb[..., :1], 3, -1)
    np.testing.assert_array_equal(load_picture(tmp_path / "grey.png"), grey)
    with Image.open(tmp_path / "grey.png") as image:
        np.testing.assert_array_equal(load_picture(image), grey)


def test_transparency_is_laid_over_white(rgb: np.ndarray, tmp_path: Path):
    alpha = np.zeros((40, 60, 1), np.uint8)
    alpha[:20], alpha[20:30] = 255, 128
    rgba = np.concatenate([rgb, alpha], -1)
    path = save(tmp_path / "a.png", Image.fromarray(rgba))
    for source in (path, rgba, Image.fromarray(rgba)):
        loaded = load_picture(source)
        np.testing.assert_array_equal(loaded[:20], rgb[:20])
        assert (loaded[30:] == 255).all()
        assert np.abs(loaded[20:30] - (rgb[20:30] * 0.502 + 255 * 0.498)).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(rgb: np.ndarray, tmp_path: Path, orientation: int):
    """Stored so that a viewer that follows the tag shows `rgb`; file and PIL image agree."""
    undo = {1: [], 2: ["h"], 3: ["r2"], 4: ["v"], 5: ["t"], 6: ["r1"], 7: ["r2", "t"], 8: ["r3"]}[orientation]
    stored = rgb
    for step in undo:
        stored = {
            "h": lambda a: a[:, ::-1], "v": lambda a: a[::-1], "t": lambda a: a.transpose(1, 0, 2),
            "r1": lambda a: np.rot90(a, 1), "r2": lambda a: np.rot90(a, 2), "r3": lambda a: np.rot90(a, 3),
        }[step](stored)  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(
        tmp_path / "a.jpg", Image.fromarray(np.ascontiguousarray(stored)), quality=100, subsampling=0, exif=exif
    )
    loaded = load_picture(path)
    assert loaded.shape == rgb.shape
    assert np.abs(loaded.astype(int) - rgb).max() <= 4
    with Image.open(path) as image:
        assert np.abs(load_picture(image).astype(int) - loaded).max() <= 2


def test_arrays_of_every_layout(rgb: np.ndarray):
    np.testing.assert_array_equal(load_picture(rgb), rgb)
    np.testing.assert_array_equal(load_picture(rgb[..., 0]), np.repeat(rgb[..., :1], 3, -1))
    np.testing.assert_array_equal(load_picture(rgb[..., :1]), np.repeat(rgb[..., :1], 3, -1))


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((0, 5, 3), np.uint8), r"shape \(0, 5, 3\)"),
        (np.zeros((5, 5, 2), np.uint8), r"shape \(5, 5, 2\)"),
        (np.zeros((2, 5, 5, 3), np.uint8), r"shape \(2, 5, 5, 3\)"),
        (np.zeros((5, 5, 3), np.float32), "dtype float32"),
    ],
)
def test_bad_arrays(array: np.ndarray, says: str):
    with pytest.raises(InputError, match=says):
        load_picture(array)


def test_bad_pil_images():
    with pytest.raises(InputError, match="0 x 4 pixels"):
        load_picture(Image.new("RGB", (0, 4)))
    for mode in ("F", "I"):
        with pytest.raises(InputError, match=rf"PIL mode {mode} \(.*expected an 8- or 16-bit picture"):
            load_picture(Image.new(mode, (4, 4)))


def test_premultiplied_transparency(rgb: np.ndarray):
    grey = Image.fromarray(rgb).convert("LA")
    grey.putalpha(128)
    colour = Image.fromarray(rgb).convert("RGBA")
    colour.putalpha(128)
    for image, mode in ((grey, "La"), (colour, "RGBa")):
        loaded = load_picture(image.convert(mode)).astype(int)
        assert np.abs(loaded - load_picture(image)).max() <= 2


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_tiffs_of_no_known_range(tmp_path: Path, capfd, dtype: type):
    """OpenCV would warn on stderr beside the error."""
    path = save(tmp_path / "a.tif", Image.fromarray(np.ones((5, 6), dtype)))
    with pytest.raises(InputError, match=r"a\.tif has PIL mode [FI] .*; expected an 8- or 16-bit picture"):
        load_picture(path)
    assert capfd.readouterr().err == ""


def test_a_picture_beyond_the_limit_is_not_called_damaged(tmp_path: Path, monkeypatch):
    path = save(tmp_path / "a.png", Image.new("RGB", (30, 30)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with pytest.raises(InputError, match=r"a\.png: the picture is too large to be read \(Image size \(900 pixels\)"):
        load_picture(path)


def test_bad_files_are_named(tmp_path: Path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("this is no picture")
    (tmp_path / "folder.jpg").mkdir()
    for name, says in [
        ("missing.jpg", "no such file"),
        ("empty.jpg", "is empty"),
        ("text.jpg", "not a picture"),
        ("folder.jpg", "is a directory"),
    ]:
        with pytest.raises(InputError, match=says) as caught:
            load_picture(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_a_truncated_file_is_an_error(rgb: np.ndarray, tmp_path: Path, form: str):
    noise = np.random.default_rng(0).integers(0, 256, rgb.shape, np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).save(data, form)
    whole = data.getvalue()
    for part in (0.02, 0.3, 0.6, 0.9, 0.98):
        path = tmp_path / f"cut.{form.lower()}"
        path.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(InputError, match=r"cut\."):
            load_picture(path)


def test_a_jpeg_with_bytes_after_its_end_is_read(rgb: np.ndarray, tmp_path: Path):
    path = save(tmp_path / "a.jpg", Image.fromarray(rgb))
    whole = load_picture(path)
    path.write_bytes(path.read_bytes() + b"trailer of a phone's camera")
    np.testing.assert_array_equal(load_picture(path), whole)
