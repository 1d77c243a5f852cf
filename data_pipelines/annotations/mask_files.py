"""Masks that are stored as pictures, in files or within the annotations."""

import base64
import binascii
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image, UnidentifiedImageError

from data_pipelines import masks
from data_pipelines.records import RLE
from instancevg_jax.errors import InputError, first_line

_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)  # what PIL raises


def read_mask(value: str, where: str, folders: Sequence[Path]) -> RLE:
    """The mask in a picture: `value` is its file name relative to one of `folders`, or a data URI with its bytes in base64.

    The object consists of the pixels that are not 0 or, in a picture with transparency, not transparent. Raises InputError for a
    picture that is missing or damaged, and for one with more than two values, whose meaning is unknown.
    """
    if value.startswith("data:"):
        name, data = where, _decode_uri(value, where)
    else:
        name = value if len(value) <= 60 else f"{value[:57]}..."
        data = _read_file(value, where, name, folders)
    try:
        with Image.open(io.BytesIO(data)) as image:
            masks.check_size(image.height, image.width)
            pixels = np.asarray(image)
    except InputError as error:
        raise InputError(f"{where}: the mask {name} has {error}") from error
    except _DAMAGED as error:
        why = "" if isinstance(error, UnidentifiedImageError) else f" ({first_line(error)})"  # it names an address
        raise InputError(f"{where}: the mask {name} is not a picture that can be read{why}") from error
    return masks.from_pixels(_object_in(pixels, where, name))


def _object_in(pixels: np.ndarray, where: str, name: str) -> Bool[np.ndarray, "H W"]:
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        alpha, pixels = pixels[..., -1], pixels[..., :-1]
        if alpha.min() != alpha.max():
            pixels = alpha
    foreground = np.any(pixels.reshape(*pixels.shape[:2], -1), axis=2)
    values = pixels[foreground]
    if len(values) and (values != values[0]).any():
        raise InputError(
            f"{where}: the mask {name} has several values besides 0, such as {values.min()} and {values.max()}; expected one "
            "object per file, as 0 and one other value"
        )
    return foreground


def _read_file(value: str, where: str, name: str, folders: Sequence[Path]) -> bytes:
    spelled = [value, value.replace("\\", "/")]
    try:
        path = next((f / s for f in folders for s in spelled if (f / s).is_file()), None)
        if path:
            return path.read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"{where}: the mask {name} cannot be read ({first_line(error)})") from error
    looked = " or ".join(map(str, folders)) or "a path within the folder of pictures"
    raise InputError(
        f"{where} is {name!r}, taken for the file of a mask, which does not exist; expected it in {looked}"
    )


def _decode_uri(value: str, where: str) -> bytes:
    head, _, data = value.partition(",")
    if not head.endswith(";base64"):
        raise InputError(f"{where} is a data URI that begins with {head[:40]!r}; expected data:image/png;base64,...")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"{where}: the data URI is not valid base64 ({first_line(error)})") from error
