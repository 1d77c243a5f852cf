"""Pictures, from what a user has to what the network takes: one path for training, evaluation and prediction.

Source: instancevg/datasets/pipelines/loading.py and transforms.py of the original; it decodes and resizes with OpenCV.
"""

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from instancevg_jax.errors import InputError, first_line

Picture = str | Path | Image.Image | np.ndarray  # whatever `load_picture` takes

PIXEL_MEAN = (123.675, 116.28, 103.53)  # RGB
PIXEL_STD = (58.395, 57.12, 57.375)

_MEAN, _SCALE = np.asarray(PIXEL_MEAN, np.float32), (1 / np.asarray(PIXEL_STD, np.float64)).astype(np.float32)
_NORMALIZED = ((np.arange(256, dtype=np.float32)[:, None] - _MEAN) * _SCALE)[None]  # [1, 256, 3], of every level

_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_UNSCALED = {"F": "floating point", "I": "32-bit integers"}  # PIL's modes of no known range
# what PIL's decoders raise on a file they cannot finish
_DAMAGED = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    IndexError,
    struct.error,
    zlib.error,
    RuntimeError,
)


def load_picture(source: Picture) -> UInt8[np.ndarray, "H W 3"]:
    """Read a picture as 8-bit RGB.

    Files are decoded as the original does, by OpenCV: EXIF orientation is applied, grey and palette become RGB, CMYK is
    converted, 16 bit keeps the high byte. One thing differs: where the original drops the alpha channel (and shows
    whatever lies beneath), transparency is laid over white, as a viewer shows it.

    Args:
        source: a file's path; or a PIL image of any mode but "F" and "I"; or an array [H, W], [H, W, 1], [H, W, 3] (RGB) or
            [H, W, 4] (RGBA) of uint8 or uint16.

    Raises:
        InputError: the file is missing, a directory, empty, truncated or no picture; the array has another layout.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, "the picture")
    if isinstance(source, Image.Image):
        return _from_pil(source, "the picture")
    return decode_picture(read_file(Path(source)), str(source))


def prepare_picture(
    rgb: UInt8[np.ndarray, "H W 3"], height: int, width: int
) -> Float32[np.ndarray, "{height} {width} 3"]:
    """Resize to the network's size, without keeping the aspect, and normalize by the ImageNet mean and deviation.

    OpenCV's bilinear, which does not antialias: what the original was trained with. (PIL's bilinear antialiases.)
    """
    return normalize(resize_picture(rgb, height, width))


def resize_picture(rgb: UInt8[np.ndarray, "H W 3"], height: int, width: int) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """The first half of `prepare_picture`."""
    return cv2.resize(rgb, (width, height), interpolation=cv2.INTER_LINEAR)


def normalize(rgb: UInt8[np.ndarray, "H W 3"], out: np.ndarray | None = None) -> Float32[np.ndarray, "H W 3"]:
    """The second half of `prepare_picture`; written into `out`, [H, W, 3] float32, where that is given."""
    return cv2.LUT(rgb, _NORMALIZED, dst=out)


def read_file(path: Path) -> bytes:
    """The bytes of a picture's file. Raises InputError where it is missing, empty or no file."""
    if not path.exists():
        raise InputError(f"{path}: no such file; expected a picture")
    if path.is_dir():
        raise InputError(f"{path}: is a directory; expected a picture file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if not data:
        raise InputError(f"{path}: the file is empty; expected a picture")
    return data


def decode_picture(data: bytes, name: str) -> UInt8[np.ndarray, "H W 3"]:
    """`load_picture` for the content of a file; `name` names it in errors.

    OpenCV decodes; PIL, which unlike OpenCV refuses a truncated file, checks whatever is not evidently whole. A JPEG that
    ends as it should passes for whole: neither library tells of damage in its middle.
    """
    if data.startswith(_JPEG_START) and data.rstrip(b"\0").endswith(_JPEG_END):
        return _decode_opencv(data, name)
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except UnidentifiedImageError as error:
        raise InputError(f"{name}: not a picture in a known format (JPEG, PNG, WebP, TIFF, BMP, GIF)") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{name}: the picture is too large to be read ({first_line(error)})") from error
    except _DAMAGED as error:
        raise InputError(f"{name}: the picture is damaged or truncated ({error})") from error
    numbers = image.mode == "F" or (image.mode == "I" and image.format == "TIFF")  # which OpenCV cannot read
    if image.has_transparency_data or numbers:
        return _from_pil(image, name)
    return _decode_opencv(data, name)


def _decode_opencv(data: bytes, name: str) -> UInt8[np.ndarray, "H W 3"]:
    try:
        rgb = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise InputError(f"{name}: the picture cannot be decoded ({error.err})") from error
    if rgb is None:
        raise InputError(f"{name}: the picture cannot be decoded; expected JPEG, PNG, WebP, TIFF, BMP or GIF")
    return np.asarray(rgb)


def _from_pil(image: Image.Image, name: str) -> UInt8[np.ndarray, "H W 3"]:
    if image.width == 0 or image.height == 0:
        raise InputError(f"{name} is {image.width} x {image.height} pixels; expected at least 1 x 1")
    if image.mode in _UNSCALED:
        raise InputError(
            f"{name} has PIL mode {image.mode} ({_UNSCALED[image.mode]}, whose white is not told); "
            "expected an 8- or 16-bit picture"
        )
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return _from_array(np.asarray(image).astype(np.uint16), name)
    if image.mode == "La":
        image = image.convert("LA")
    return _from_array(np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB")), name)


def _from_array(array: np.ndarray, name: str) -> UInt8[np.ndarray, "H W 3"]:
    shape = array.shape
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)) or 0 in shape:
        raise InputError(f"{name} has shape {shape}; expected [H, W], [H, W, 3] or [H, W, 4], not empty")
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise InputError(f"{name} has dtype {array.dtype}; expected uint8 or uint16")
    if array.ndim == 2:
        array = array[..., None]
    if array.shape[2] == 4:
        return _over_white(array)
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def _over_white(rgba: UInt8[np.ndarray, "H W 4"]) -> UInt8[np.ndarray, "H W 3"]:
    colour, alpha = rgba[..., :3].astype(np.uint16), rgba[..., 3:].astype(np.uint16)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
