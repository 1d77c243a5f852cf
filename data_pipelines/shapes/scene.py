"""Drawing a scene of the embedded data set: background, objects with texture and shading, shadows, light, noise.

All arithmetic on pixels uses integers, and edges are smoothed by drawing at `_FINE` times the size and averaging, so that
every platform draws the same picture. Pictures are drawn as int16 planes [3, H, W], because numpy is several times faster on
long rows than on triples.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Int8, Int16, UInt8

from data_pipelines.shapes.dice import Dice
from data_pipelines.shapes.language import SceneObject

_FINE = 4  # sub-pixels per side
_FULL = _FINE * _FINE  # coverage of a pixel that lies entirely inside
_SHIFT = 4  # fractional bits of cv2's fixed-point coordinates

_RGB = {
    "red": (222, 38, 38),
    "orange": (255, 134, 14),
    "yellow": (250, 222, 40),
    "green": (38, 168, 58),
    "cyan": (52, 212, 222),
    "blue": (44, 78, 226),
    "purple": (152, 50, 200),
}
_DARK_ACCENT = ("orange", "yellow", "cyan")  # their stripes and dots are darker; those of the other colours lighter


def _arc(count: int, radius: float) -> list[tuple[float, float]]:
    """A regular polygon with its first corner at the top, rounded so that all platforms agree."""
    angles = [2 * np.pi * i / count for i in range(count)]
    return [(round(radius * float(np.sin(a)), 4), round(-radius * float(np.cos(a)), 4)) for a in angles]


def _star() -> list[tuple[float, float]]:
    outer, inner = _arc(5, 1.16), _arc(10, 0.52)
    return [corner for i in range(5) for corner in (outer[i], inner[2 * i + 1])]


_CROSS = ((-0.36, -1), (0.36, -1), (0.36, -0.36), (1, -0.36), (1, 0.36), (0.36, 0.36))
_HEART = (
    (0, -0.5),
    (0.12, -0.76),
    (0.36, -0.94),
    (0.64, -0.94),
    (0.9, -0.78),
    (1.02, -0.5),
    (1, -0.2),
    (0.84, 0.12),
    (0.5, 0.52),
)
# Outlines of about one radius; a second outline is a hole.
_OUTLINES: dict[str, list[list[tuple[float, float]]]] = {
    "circle": [_arc(40, 0.98)],
    "square": [[(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)]],
    "triangle": [[(0, -1.08), (1.06, 0.82), (-1.06, 0.82)]],
    "star": [_star()],
    "heart": [[*_HEART, (0, 1.02), *((-x, y) for x, y in reversed(_HEART[1:]))]],
    "ring": [_arc(40, 1.02), _arc(32, 0.54)],
    "cross": [[*_CROSS, *((-x, -y) for x, y in _CROSS)]],
}
_POINTS = {shape: [np.array(outline) for outline in outlines] for shape, outlines in _OUTLINES.items()}


def draw(
    dice: Dice, things: Sequence[SceneObject], size: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "H W 3"], Bool[np.ndarray, "N H W"], Float32[np.ndarray, "N 4"]]:
    """The picture (RGB), each object's visible mask, and the boxes tight around the masks.

    `size` is (H, W). The objects are painted in order, so the last one is in front. Boxes are xyxy in pixels, the right
    and lower edges excluded.
    """
    height, width = size
    picture = _background(dice, height, width)
    owner = np.full((height, width), -1, np.int8)
    for index, thing in enumerate(things):
        _paint(dice, picture, owner, index, thing)
    _light_and_noise(dice, picture)
    masks = owner[None] == np.arange(len(things), dtype=np.int8)[:, None, None]
    return cv2.merge(list(picture.astype(np.uint8))), masks, tight_boxes(masks)


def tight_boxes(masks: Bool[np.ndarray, "N H W"]) -> Float32[np.ndarray, "N 4"]:
    """Boxes around masks that are not empty: xyxy in pixels, the right and lower edges excluded."""
    height, width = masks.shape[1:]
    rows, columns = np.any(masks, axis=2, keepdims=True)[:, :, 0], np.any(masks, axis=1, keepdims=True)[:, 0]
    ends = [columns.argmax(1), rows.argmax(1), width - columns[:, ::-1].argmax(1), height - rows[:, ::-1].argmax(1)]
    return np.stack(ends, axis=1).astype(np.float32)


# --- Objects ----------------------------------------------------------------------------------------------------------


def _paint(
    dice: Dice, picture: Int16[np.ndarray, "3 H W"], owner: Int8[np.ndarray, "H W"], index: int, thing: SceneObject
) -> None:
    """Draw one object over the picture, in place. It owns the pixels of which it covers at least half."""
    height, width = owner.shape
    radius = thing.radius * min(height, width)
    x, y = thing.centre[0] * width, thing.centre[1] * height
    reach = int(1.25 * radius) + 2
    left, top = max(int(x) - reach, 0), max(int(y) - reach, 0)
    right, bottom = min(int(x) + reach + 1, width), min(int(y) + reach + 1, height)
    centre = (x - left, y - top)

    fine = _silhouette(dice, thing, centre, radius, (bottom - top, right - left))
    line = 2 * max(1, round(0.07 * radius * _FINE)) + 1
    border = {"borderType": cv2.BORDER_CONSTANT, "borderValue": (_FULL,)}
    inside = cv2.erode(fine, np.ones((line, line), np.uint8), **border)
    coverage, body = _averaged(fine), _averaged(inside)
    base, accent, rim = _tints(dice, thing.colour)
    colour = body * (base - rim) + coverage * rim
    if thing.texture != "plain":
        colour += _averaged(_pattern(dice, thing.texture, radius, centre, inside)) * (accent - base)

    _cast_shadow(picture, coverage, left, top, max(1, round(0.13 * radius)))
    patch = picture[:, top:bottom, left:right]
    patch *= _FULL - coverage
    patch += _shaded(colour, radius, centre)
    patch >>= 4
    np.copyto(owner[top:bottom, left:right], index, where=2 * coverage >= _FULL)


def _silhouette(
    dice: Dice, thing: SceneObject, centre: tuple[float, float], radius: float, size: tuple[int, int]
) -> UInt8[np.ndarray, "h4 w4"]:
    """The object on the finer grid of its patch, tilted by up to 15 degrees: _FULL inside, 0 outside."""
    half = dice.uniform(-0.13, 0.13)  # tangent of half the angle, from which exact operations give cosine and sine
    cosine, sine = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
    scale = _FINE * (1 << _SHIFT)
    turn = np.array([[cosine, sine], [-sine, cosine]]) * (radius * scale)
    # cv2 counts from the middle of a pixel, hence the half pixel.
    offset = np.array(centre) * scale - (1 << _SHIFT) // 2
    outlines = [np.rint(points @ turn + offset).astype(np.int32) for points in _POINTS[thing.shape]]
    canvas = np.zeros((size[0] * _FINE, size[1] * _FINE), np.uint8)
    cv2.fillPoly(canvas, outlines, (_FULL,), cv2.LINE_8, _SHIFT)
    return canvas


def _averaged(fine: UInt8[np.ndarray, "h4 w4"]) -> Int16[np.ndarray, "h w"]:
    """Coverage 0.._FULL of every pixel: the mean of _FULL values that are 0 or _FULL, which needs no rounding."""
    height, width = fine.shape
    halved = cv2.resize(fine, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    return cv2.resize(halved, (width // 4, height // 4), interpolation=cv2.INTER_AREA).astype(np.int16)


def _pattern(
    dice: Dice, texture: str, radius: float, centre: tuple[float, float], inside: UInt8[np.ndarray, "h4 w4"]
) -> UInt8[np.ndarray, "h4 w4"]:
    """The part of `inside` that stripes or dots cover."""
    period = max(3 * _FINE, round((0.5 if texture == "striped" else 0.56) * radius * _FINE))
    x = np.arange(inside.shape[1], dtype=np.int32) - round(centre[0] * _FINE)
    y = (np.arange(inside.shape[0], dtype=np.int32) - round(centre[1] * _FINE))[:, None]
    if texture == "striped":
        a, b = dice.pick(((0, 4), (4, 0), (3, 3), (3, -3)))
        phase = (np.arange(8 * (x.size + y.size)) % (4 * period) < 2 * period).view(np.uint8)
        return inside * phase[a * x + b * y + 4 * (x.size + y.size)]
    # Squared distances to the nearest dot's centre, along each axis.
    x, y = ((side + period // 2) % period - period // 2 for side in (x, y))
    return inside * (x * x + y * y < period * period // 10).view(np.uint8)


def _tints(dice: Dice, colour: str) -> Int16[np.ndarray, "3 3 1 1"]:
    """Base, accent and rim colour of one object, slightly varied, 0..255."""
    gain = dice.between(54, 64)
    base = [min(255, max(0, (c * gain >> 6) + dice.between(-10, 10))) for c in _RGB[colour]]
    accent = [c * 26 >> 6 for c in base] if colour in _DARK_ACCENT else [c + 3 * (255 - c) // 4 for c in base]
    rim = [c * 34 >> 6 for c in base]
    return np.array([base, accent, rim], np.int16)[..., None, None]


def _shaded(
    colour: Int16[np.ndarray, "3 h w"], radius: float, centre: tuple[float, float]
) -> Int16[np.ndarray, "3 h w"]:
    """Lighter to the upper left, darker to the lower right. Takes and returns colour times coverage (up to 4080)."""
    height, width = colour.shape[1:]
    x, y = np.arange(width) - int(centre[0]), np.arange(height) - int(centre[1])
    gains = np.clip(58 - 8 * np.arange(x[0] + y[0], x[-1] + y[-1] + 1) // max(1, round(radius)), 44, 64)
    gain = (gains >> 1).astype(np.uint16)[np.arange(height)[:, None] + np.arange(width)]
    return ((colour.view(np.uint16) >> 1) * gain >> 4).view(np.int16)  # 4080 / 2 * 32 is just below 2**16


def _cast_shadow(
    picture: Int16[np.ndarray, "3 H W"], coverage: Int16[np.ndarray, "h w"], left: int, top: int, offset: int
) -> None:
    """Darken what lies to the lower right of the object by up to 3/8."""
    height, width = coverage.shape
    below = picture[:, top + offset : top + offset + height, left + offset : left + offset + width]
    below *= 128 - 3 * coverage[: below.shape[1], : below.shape[2]]
    below >>= 7


# --- Background and light ------------------------------------------------------------------------------------------


def _background(dice: Dice, height: int, width: int) -> Int16[np.ndarray, "3 H W"]:
    """Two greyish tones mixed as a gradient, soft blotches, bands or a chequerboard."""
    grey = dice.between(70, 205)
    one = np.array([grey + dice.between(-14, 14) for _ in range(3)], np.int16)[:, None, None]
    kind = dice.pick(("slope", "blotches", "bands", "squares"))
    contrast = dice.between(30, 80) if kind in ("slope", "blotches") else dice.between(12, 30)
    x, y = np.arange(width, dtype=np.int32), np.arange(height, dtype=np.int32)[:, None]
    if kind == "blotches":
        coarse = dice.bytes(49).reshape(7, 7) >> 2
        mix = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)
    elif kind == "slope":
        mix = (x * dice.between(0, 64) // width + y * dice.between(0, 64) // height) >> 1
    else:
        period = max(2, min(height, width) * dice.between(6, 16) // 96)
        a, b = (1, 1) if kind == "squares" else dice.pick(((1, 0), (0, 1)))
        mix = ((x // period * a + y // period * b) & 1) << 6
    towards = contrast if grey < 128 else -contrast
    return one + (mix.astype(np.int16) * np.int16(towards) >> 6)


def _light_and_noise(dice: Dice, picture: Int16[np.ndarray, "3 H W"]) -> None:
    """A gradient of light and noise with a triangular distribution over the picture, in place; clipped to 0..255."""
    height, width = picture.shape[1:]
    fall, a = dice.between(0, 14), dice.between(0, 64)
    x, y = (np.arange(side, dtype=np.int32) * 64 // side for side in (width, height))
    if dice.chance(0.5):
        x = x[::-1]
    light = 64 - (((x * a)[None, :] + (y * (64 - a))[:, None]) * fall >> 12)
    picture *= light.astype(np.int16)
    picture >>= 6
    strength = dice.between(0, 3)
    if strength:
        grain = dice.bytes(picture.size).reshape(picture.shape)
        noise = ((grain >> 4) + (grain & 15)).view(np.int8) - np.int8(15)
        picture += noise * np.int8(strength) >> 2
    np.clip(picture, 0, 255, out=picture)
