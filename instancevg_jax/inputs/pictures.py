"""Reads, resizes and normalizes pictures: one path for training, evaluation and prediction.

Source: instancevg/datasets/pipelines/loading.py and transforms.py of the original; it decodes and resizes with OpenCV.
"""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from instancevg_jax.errors import InputError, first_line

Picture = str | Path | bytes | BinaryIO | Image.Image | np.ndarray  # what `load_picture` takes

PIXEL_MEAN = (123.675, 116.28, 103.53)  # RGB
PIXEL_STD = (58.395, 57.12, 57.375)
MAX_PIXELS = 120_000_000  # per picture, unless the environment says otherwise
MAX_PIXELS_VARIABLE = "INSTANCEVG_MAX_PIXELS"

_MEAN, _SCALE = np.asarray(PIXEL_MEAN, np.float32), (1 / np.asarray(PIXEL_STD, np.float64)).astype(np.float32)
_NORMALIZED = ((np.arange(256, dtype=np.float32)[:, None] - _MEAN) * _SCALE)[None]  # [1, 256, 3], of every level

_FORMATS = "JPEG, PNG, WebP, TIFF, BMP, GIF or AVIF"
_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_FOREIGN = (  # position, first bytes, what they are a sign of
    (4, b"ftyphei", f"it is a HEIC picture; convert it to {_FORMATS}"),
    (4, b"ftypmif1", f"it is a HEIF picture; convert it to {_FORMATS}"),
    (0, b"version https://git-lfs", "it is a Git LFS pointer; run 'git lfs pull' to download the picture"),
    (0, b"<", "it is an HTML, XML or SVG file"),
    (0, b"%PDF", "it is a PDF"),
)
_UNSCALED = {"F": "floating-point", "I": "32-bit integer"}  # Pillow's modes whose value range is unknown
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # EXIF orientation -> what undoes it
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}
# what Pillow's decoders raise on a damaged file
_DAMAGED = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    struct.error,
    zlib.error,
    RuntimeError,
)

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `_open` has a limit of its own
warnings.filterwarnings("ignore", "Corrupt EXIF data", UserWarning)  # such a picture is taken as it is stored


def load_picture(source: Picture) -> UInt8[np.ndarray, "H W 3"]:
    """Read a picture as 8-bit RGB, upright.

    JPEGs are decoded by OpenCV, as in the original; all other formats by Pillow, which gives the same pixels. EXIF
    orientation is applied in every format. Gray and palette pictures become RGB, CMYK is converted, and of 16 bits the
    high byte is kept. One thing differs from the original, which drops the alpha channel and shows whatever lies beneath:
    transparent pixels are blended with white, as a viewer shows them.

    Args:
        source: a file's path; the file's content, as bytes or as an open binary file; a PIL image of any mode but "F" and "I";
            or an array (numpy's, JAX's, torch's) [H, W], [H, W, 1], [H, W, 3] (RGB) or [H, W, 4] (RGBA) of uint8 or uint16.

    Raises:
        InputError: the file is missing, a directory, empty, truncated, too large (see `max_pixels`) or not a picture; the
            array has another layout; `source` is something else.
    """
    if isinstance(source, Image.Image):
        return _from_pil(source, "the picture")
    if isinstance(source, str) and "://" in source:
        raise InputError(f"{source}: an address; download the picture and give the file's path")
    if isinstance(source, str | os.PathLike):
        return decode_picture(read_file(Path(source)), str(source))
    if hasattr(source, "__array__"):
        return _from_array(np.asarray(source), "the picture")
    read = getattr(source, "read", None)
    try:
        data = read() if read else source
    except (OSError, ValueError) as error:  # it is closed, or not open for reading
        raise InputError(f"the picture's file cannot be read ({first_line(error)})") from error
    if not isinstance(data, bytes | bytearray | memoryview):
        expected = "a path, bytes, a file opened in binary mode, a PIL image or an array"
        raise InputError(f"the picture is of type {type(source).__name__}; expected {expected}")
    return decode_picture(bytes(data), "the picture")


def picture_size(file: str | Path) -> tuple[int, int, int]:
    """Width and height, as `load_picture` returns the picture, and its EXIF orientation (1 to 8; 1: stored upright).

    Only the header is decoded. With orientations 5 to 8 the file stores height and width the other way around. Raises
    InputError as `load_picture` does, but not for damage behind the header.
    """
    data = read_file(Path(file))
    image = _open(data, str(file), max_pixels())
    orientation = _orientation(image, data)
    width, height = image.size
    if orientation >= 5 and image.format != "TIFF":  # whose size is upright already
        width, height = height, width
    return width, height, orientation


def max_pixels(default: int = MAX_PIXELS) -> int:
    """The largest number of pixels of a picture that is read: INSTANCEVG_MAX_PIXELS in the environment, or `default`."""
    value = os.environ.get(MAX_PIXELS_VARIABLE, "")
    if value and not (value.isdecimal() and int(value)):
        raise InputError(f"{MAX_PIXELS_VARIABLE} is {value!r}; expected a number of pixels")
    return int(value or default)


def check_header(data: bytes, name: str, limit: int) -> None:
    """Raise InputError, as `load_picture` does, unless a file starts as a picture of at most `limit` pixels."""
    _open(data, name, limit)


def prepare_picture(
    rgb: UInt8[np.ndarray, "H W 3"], height: int, width: int
) -> Float32[np.ndarray, "{height} {width} 3"]:
    """Resize to the network's size, without keeping the aspect ratio, and normalize by ImageNet's mean and deviation.

    Bilinear without antialiasing, by OpenCV, as the original was trained. (Pillow's bilinear antialiases.)
    """
    return normalize(resize_picture(rgb, height, width))


def resize_picture(rgb: UInt8[np.ndarray, "H W 3"], height: int, width: int) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Resize as `prepare_picture` does."""
    return cv2.resize(rgb, (width, height), interpolation=cv2.INTER_LINEAR)


def normalize(rgb: UInt8[np.ndarray, "H W 3"], out: np.ndarray | None = None) -> Float32[np.ndarray, "H W 3"]:
    """Normalize as `prepare_picture` does. `out`: [H, W, 3] float32 to write the result to."""
    return cv2.LUT(rgb, _NORMALIZED, dst=out)


def read_file(path: Path) -> bytes:
    """The content of a picture's file. Raises InputError if it is missing, empty, a directory or unreadable."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; expected a picture") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: is a directory; expected a picture file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{str(path)!r}: not a file name ({error}); expected a picture") from error
    if not data:
        raise InputError(f"{path}: the file is empty; expected a picture")
    return data


def decode_picture(data: bytes, name: str) -> UInt8[np.ndarray, "H W 3"]:
    """`load_picture` for the content of a file; `name` names it in errors.

    Pillow detects truncated files and OpenCV does not, so Pillow also reads JPEGs that do not end as they should. Damage in
    the middle of a JPEG is detected by neither.
    """
    image = _open(data, name, max_pixels())
    jpeg = data.startswith(_JPEG_START)
    if not (jpeg and data.rstrip(b"\0").endswith(_JPEG_END)):
        try:
            image.load()
        except (*_DAMAGED, Image.DecompressionBombError) as error:
            raise InputError(f"{name}: the picture is damaged or truncated ({error})") from error
    stored = _decode_jpeg(data, name) if jpeg else _pixels(image, name)
    orientation = 1 if image.format == "TIFF" else _orientation(image, data)  # Pillow turns TIFFs itself
    return np.ascontiguousarray(_UPRIGHT[orientation](stored)) if orientation in _UPRIGHT else stored


def _open(data: bytes, name: str, limit: int) -> Image.Image:
    """The picture with its header decoded, and its pixels not yet; refused if there are more than `limit`."""
    if limit > MAX_PIXELS:
        Image.MAX_IMAGE_PIXELS = None  # the user's limit takes the place of Pillow's
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        reasons = [reason for at, start, reason in _FOREIGN if data[at:].startswith(start)]
        reason = reasons[0] if reasons else f"expected {_FORMATS}"
        raise InputError(f"{name}: not a picture in a known format; {reason}") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{name}: the picture is too large; {_expected_pixels(limit)}") from error
    except _DAMAGED as error:
        raise InputError(f"{name}: the picture is damaged or truncated ({error})") from error
    _check_pixels(image, name, limit)
    return image


def _check_pixels(image: Image.Image, name: str, limit: int) -> None:
    if image.width * image.height > limit:
        raise InputError(
            f"{name}: the picture is too large ({image.width} x {image.height}); {_expected_pixels(limit)}"
        )


def _expected_pixels(limit: int) -> str:
    return f"expected at most {limit} pixels (set {MAX_PIXELS_VARIABLE} to change this limit)"


def _orientation(image: Image.Image, data: bytes) -> int:
    """EXIF orientation of a file, 1 to 8. Like OpenCV and browsers, this does not look at XMP."""
    if image.format == "TIFF":
        value = image.tag_v2.get(ExifTags.Base.Orientation, 1)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        exif = Image.Exif()
        try:
            if image.format == "PNG" and "exif" not in image.info and b"eXIf" in data:
                image.load()  # the chunk may come after the pixels
            exif.load(image.info.get("exif", b""))
            value = exif.get(ExifTags.Base.Orientation, 1)
        except _DAMAGED:
            return 1
    return value if value in _UPRIGHT else 1


def _decode_jpeg(data: bytes, name: str) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels as they are stored."""
    try:
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        rgb = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise InputError(f"{name}: the picture cannot be decoded ({error.err})") from error
    if rgb is None:
        raise InputError(f"{name}: the picture is damaged: it starts as a JPEG and cannot be decoded")
    return np.asarray(rgb)


def _from_pil(image: Image.Image, name: str) -> UInt8[np.ndarray, "H W 3"]:
    if image.width == 0 or image.height == 0:
        raise InputError(f"{name} is {image.width} x {image.height} pixels; expected at least 1 x 1")
    _check_pixels(image, name, max_pixels())
    return _pixels(ImageOps.exif_transpose(image), name)


def _pixels(image: Image.Image, name: str) -> UInt8[np.ndarray, "H W 3"]:
    sixteen_bits = image.format in ("PNG", "PPM")  # which Pillow may hold in mode "I"
    if image.mode in _UNSCALED and not sixteen_bits:
        raise InputError(
            f"{name} has Pillow mode {image.mode} ({_UNSCALED[image.mode]}), whose value range is unknown; "
            "expected an 8- or 16-bit picture"
        )
    if image.mode.startswith("I"):
        return _from_array(np.asarray(image).astype(np.uint16), name)
    if image.mode == "La":
        image = image.convert("LA")
    return _from_array(np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB")), name)


def _from_array(array: np.ndarray, name: str) -> UInt8[np.ndarray, "H W 3"]:
    shape = array.shape
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)) or 0 in shape:
        raise InputError(
            f"{name} has shape {shape}; expected [H, W], [H, W, 3] or [H, W, 4], not empty, with channels last"
        )
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    elif array.dtype != np.uint8:
        hint = ", such as (255 * picture).astype('uint8') for values from 0 to 1" if array.dtype.kind == "f" else ""
        raise InputError(f"{name} has dtype {array.dtype}; expected uint8 or uint16{hint}")
    if array.ndim == 2:
        array = array[..., None]
    if array.shape[2] == 4:
        return _over_white(array)
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def _over_white(rgba: UInt8[np.ndarray, "H W 4"]) -> UInt8[np.ndarray, "H W 3"]:
    colour, alpha = rgba[..., :3].astype(np.uint16), rgba[..., 3:].astype(np.uint16)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
