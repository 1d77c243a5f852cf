"""Pictures: equal to the original's (F8), and sensible on whatever a user hands over."""

import io
import struct
import zlib
from pathlib import Path

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from instancevg_jax.errors import InputError
from instancevg_jax.inputs.pictures import load_picture, picture_size, prepare_picture
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


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_orientation_is_applied_in_every_format(rgb: np.ndarray, tmp_path: Path, form: str):
    """Stored so that a viewer that follows the tag shows `rgb`; file, PIL image and `picture_size` agree."""
    steps = {
        "h": lambda a: a[:, ::-1], "v": lambda a: a[::-1], "t": lambda a: a.transpose(1, 0, 2),
        "r1": lambda a: np.rot90(a, 1), "r2": lambda a: np.rot90(a, 2), "r3": lambda a: np.rot90(a, 3),
    }  # fmt: skip
    undo = {1: [], 2: ["h"], 3: ["r2"], 4: ["v"], 5: ["t"], 6: ["r1"], 7: ["r2", "t"], 8: ["r3"]}
    options = {"JPEG": {"subsampling": 0}, "WEBP": {"lossless": True}, "AVIF": {"subsampling": "4:4:4"}}.get(form, {})
    for orientation, names in undo.items():
        stored = rgb
        for name in names:
            stored = steps[name](stored)
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = Image.fromarray(np.ascontiguousarray(stored))
        path = save(tmp_path / f"{orientation}.{form.lower()}", image, exif=exif, quality=100, **options)
        loaded = load_picture(path)
        assert loaded.shape == rgb.shape
        assert np.abs(loaded.astype(int) - rgb).max() <= 4
        assert picture_size(path) == (60, 40, orientation)
        with Image.open(path) as image:
            assert np.abs(load_picture(image).astype(int) - loaded).max() <= 2


def test_orientation_of_a_png_that_states_it_behind_its_pixels(tmp_path: Path):
    data, end = (tmp_path / "a.png"), b"\0\0\0\0IEND"
    exif = Image.Exif()
    exif[0x0112] = 6
    save(data, Image.new("RGB", (30, 20)), exif=exif)
    content = data.read_bytes()
    start = content.index(b"eXIf") - 4
    stop = start + 12 + int.from_bytes(content[start : start + 4], "big")
    chunk, rest = content[start:stop], content[:start] + content[stop:]
    data.write_bytes(rest[: rest.index(end)] + chunk + rest[rest.index(end) :])
    assert picture_size(data) == (20, 30, 6)
    assert load_picture(data).shape == (30, 20, 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_damaged_orientation_is_none(rgb: np.ndarray, tmp_path: Path):
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0"
    path = save(tmp_path / "a.jpg", Image.fromarray(rgb), exif=exif)
    assert picture_size(path) == (60, 40, 1)
    assert load_picture(path).shape == (40, 60, 3)


def test_bytes_and_open_files(rgb: np.ndarray, tmp_path: Path):
    path = save(tmp_path / "a.png", Image.fromarray(rgb))
    np.testing.assert_array_equal(load_picture(path.read_bytes()), rgb)
    np.testing.assert_array_equal(load_picture(bytearray(path.read_bytes())), rgb)
    np.testing.assert_array_equal(load_picture(io.BytesIO(path.read_bytes())), rgb)
    with path.open("rb") as file:
        np.testing.assert_array_equal(load_picture(file), rgb)
    for empty in (b"", b"no picture"):
        with pytest.raises(InputError, match="the picture: not a picture in a known format"):
            load_picture(empty)


def test_arrays_of_every_layout(rgb: np.ndarray):
    np.testing.assert_array_equal(load_picture(rgb), rgb)
    np.testing.assert_array_equal(load_picture(rgb[..., 0]), np.repeat(rgb[..., :1], 3, -1))
    np.testing.assert_array_equal(load_picture(rgb[..., :1]), np.repeat(rgb[..., :1], 3, -1))
    np.testing.assert_array_equal(load_picture(jnp.asarray(rgb)), rgb)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((0, 5, 3), np.uint8), r"shape \(0, 5, 3\)"),
        (np.zeros((5, 5, 2), np.uint8), r"shape \(5, 5, 2\)"),
        (np.zeros((2, 5, 5, 3), np.uint8), r"shape \(2, 5, 5, 3\)"),
        (np.zeros((5, 5, 3), np.float32), r"dtype float32; expected uint8 or uint16, such as .*255"),
        (np.zeros((5, 5, 3), np.int32), "dtype int32; expected uint8 or uint16$"),
    ],
)
def test_bad_arrays(array: np.ndarray, says: str):
    with pytest.raises(InputError, match=says):
        load_picture(array)


@pytest.mark.parametrize("wrong", [None, 5, io.StringIO("a.png"), ["a.png"]])
def test_what_is_no_picture(wrong):
    with pytest.raises(InputError, match=r"the picture is of type \w+; expected a path, bytes, a file opened"):
        load_picture(wrong)


def test_addresses_and_closed_files():
    with pytest.raises(InputError, match=r"https://a\.org/b\.jpg: an address; download the picture"):
        load_picture("https://a.org/b.jpg")
    file = io.BytesIO()
    file.close()
    with pytest.raises(InputError, match="the picture's file cannot be read"):
        load_picture(file)


def test_bad_pil_images():
    with pytest.raises(InputError, match="0 x 4 pixels"):
        load_picture(Image.new("RGB", (0, 4)))
    for mode in ("F", "I"):
        with pytest.raises(InputError, match=rf"Pillow mode {mode} \(.*expected an 8- or 16-bit picture"):
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
    with pytest.raises(InputError, match=r"a\.tif has Pillow mode [FI] .*; expected an 8- or 16-bit picture"):
        load_picture(path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF"])
def test_one_limit_on_pixels_for_all_formats(tmp_path: Path, monkeypatch, form: str):
    path = save(tmp_path / f"a.{form.lower()}", Image.new("RGB", (40, 20)))
    monkeypatch.setenv("INSTANCEVG_MAX_PIXELS", "799")
    for read in (load_picture, picture_size):
        with pytest.raises(
            InputError, match=r"a\.\w+: the picture is too large \(40 x 20\); expected at most 799 pixels"
        ):
            read(path)
    with Image.open(path) as image, pytest.raises(InputError, match="the picture is too large"):
        load_picture(image)
    monkeypatch.setenv("INSTANCEVG_MAX_PIXELS", "800")
    assert load_picture(path).shape == (20, 40, 3)


def test_the_limit_holds_before_decoding(tmp_path: Path):
    """400 million pixels are promised by headers alone; nothing of that size is ever allocated."""
    for form in ("JPEG", "PNG"):
        path = save(tmp_path / f"a.{form.lower()}", Image.new("RGB", (40, 20)))
        size = struct.pack(">HH", 20, 40) if form == "JPEG" else struct.pack(">II", 40, 20)
        large = struct.pack(">HH", 20_000, 20_000) if form == "JPEG" else struct.pack(">II", 20_000, 20_000)
        content = path.read_bytes().replace(size, large, 1)
        header = content[12:29]
        path.write_bytes(
            content if form == "JPEG" else content[:29] + struct.pack(">I", zlib.crc32(header)) + content[33:]
        )
        with pytest.raises(InputError, match=r"the picture is too large.*expected at most 120000000 pixels"):
            load_picture(path)


@pytest.mark.parametrize("value", ["0", "-5", "many", "1e9"])
def test_a_limit_that_is_no_number(monkeypatch, tmp_path: Path, value: str):
    path = save(tmp_path / "a.png", Image.new("RGB", (4, 4)))
    monkeypatch.setenv("INSTANCEVG_MAX_PIXELS", value)
    with pytest.raises(InputError, match=r"INSTANCEVG_MAX_PIXELS is .*; expected a number of pixels"):
        load_picture(path)


def test_bad_files_are_named(tmp_path: Path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("this is no picture")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (tmp_path / "lfs.jpg").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (tmp_path / "page.jpg").write_text("<!DOCTYPE html><title>404</title>")
    for name, says in [
        ("missing.jpg", "no such file"),
        ("empty.jpg", "is empty"),
        ("text.jpg", "not a picture"),
        ("folder.jpg", "is a directory"),
        ("x" * 300, "cannot be read"),
        ("phone.heic", "it is a HEIC picture; convert it"),
        ("lfs.jpg", "it is a Git LFS pointer"),
        ("page.jpg", "it is an HTML, XML or SVG file"),
    ]:
        with pytest.raises(InputError, match=says) as caught:
            load_picture(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF"])
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
