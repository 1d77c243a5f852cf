"""An answer drawn on its picture, for people: masks, boxes, points, scores, the sentence, or "no target".

Numpy, OpenCV and PIL only. Small pictures are enlarged until text is legible on them.
"""

from bisect import bisect_right
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from instancevg_jax.answers.postprocess import Grounding

MIN_SIDE = 480  # pixels; smaller pictures are enlarged until their longer side has as many
MIN_WIDTH = 200  # pixels; narrower pictures get a margin, so that the sentence below can be read
TINT = 0.42  # opacity of a mask
PALETTE = (
    (0, 158, 255), (255, 106, 51), (54, 196, 96), (236, 64, 144), (255, 196, 25),
    (146, 92, 255), (0, 196, 186), (196, 120, 60), (140, 190, 30), (255, 128, 196),
)  # fmt: skip
MERGED_COLOUR = (245, 245, 245)  # of what only the merged mask covers
BAR, INK, SOFT_INK, ALERT = (24, 26, 31), (244, 245, 247), (160, 166, 178), (214, 48, 49)


@dataclass(frozen=True)
class Truth:
    """What the sentence really means, in the picture's own pixels. N may be 0."""

    boxes_xyxy: np.ndarray  # [N, 4]
    masks: np.ndarray  # [N, H, W] bool


def draw_grounding(
    picture: UInt8[np.ndarray, "H W 3"], grounding: Grounding, expression: str, truth: Truth | None = None
) -> UInt8[np.ndarray, "H2 W2 3"]:
    """The answer on the picture, above a bar with the sentence; with `truth`, the ground truth beside it.

    Args:
        picture: RGB.
        grounding: the answer, in this picture's pixels.
        expression: the sentence, as the user wrote it.
        truth: what it should have been, if known.

    Returns:
        A new RGB picture, at least MIN_SIDE pixels along the longer side, higher by the bar.
    """
    scale = max(1.0, MIN_SIDE / max(picture.shape[:2]))
    panels = [_draw_answer(picture, grounding, scale)]
    if truth is not None:
        panels = [_headed(panels[0], "prediction"), _headed(_draw_truth(picture, truth, scale), "ground truth")]
    body = _side_by_side(panels)
    return np.concatenate([body, _caption(body.shape[1], _unit(panels[0]), expression, _verdict(grounding))])


def _verdict(grounding: Grounding) -> str:
    if not grounding.exists:
        return f"no target (p = {grounding.no_target_probability:.2f})"
    count = len(grounding.scores)
    return f"{count} object{'' if count == 1 else 's'}"


def _draw_answer(picture: np.ndarray, grounding: Grounding, scale: float) -> np.ndarray:
    canvas = _enlarged(picture, scale)
    if not grounding.exists:
        return _no_target(canvas, _verdict(grounding))
    covered = grounding.masks.any(axis=0) if len(grounding.masks) else np.zeros(picture.shape[:2], bool)
    canvas = _tinted(canvas, grounding.mask & ~covered, MERGED_COLOUR, outline=False)
    order = range(len(grounding.scores) - 1, -1, -1)  # the best on top
    for i in order:
        canvas = _tinted(canvas, grounding.masks[i], _colour(i))
    for i in order:
        _box(canvas, grounding.boxes_xyxy[i] * scale, _colour(i))
    for i in order:
        _point(canvas, grounding.points_xy[i] * scale, _colour(i))
    labels = [f"{score:.2f}" for score in grounding.scores]
    return _labelled(canvas, grounding.boxes_xyxy * scale, labels)


def _draw_truth(picture: np.ndarray, truth: Truth, scale: float) -> np.ndarray:
    canvas = _enlarged(picture, scale)
    if not len(truth.boxes_xyxy):
        return _no_target(canvas, "no target")
    for i, (mask, box) in enumerate(zip(truth.masks, truth.boxes_xyxy, strict=True)):
        canvas = _tinted(canvas, mask, _colour(i))
        _box(canvas, box * scale, _colour(i))
    return canvas


def _colour(index: int) -> tuple[int, int, int]:
    return PALETTE[index % len(PALETTE)]


def _enlarged(picture: np.ndarray, scale: float) -> np.ndarray:
    if scale == 1:
        return picture.copy()
    size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
    return cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC)


def _unit(canvas: np.ndarray) -> float:
    """How much thicker lines and larger letters are than at MIN_SIDE."""
    height, width = canvas.shape[:2]
    return max(0.75, min(max(height, width), 2 * min(height, width)) / MIN_SIDE)


def _tinted(
    canvas: UInt8[np.ndarray, "H W 3"],
    mask: Bool[np.ndarray, "h w"],
    colour: tuple[int, int, int],
    outline: bool = True,
) -> UInt8[np.ndarray, "H W 3"]:
    """The mask as a tint with a crisp outline. Where the picture was enlarged, the mask's stairs are smoothed away."""
    height, width = canvas.shape[:2]
    soft = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    if width > mask.shape[1]:
        soft = cv2.GaussianBlur(soft, (0, 0), 0.5 * width / mask.shape[1], borderType=cv2.BORDER_REPLICATE)
    inside = soft >= 0.5
    result = canvas.copy()
    result[inside] = (canvas[inside] * (1 - TINT) + np.asarray(colour) * TINT).astype(np.uint8)
    if outline:
        contours, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(result, contours, -1, colour, max(1, round(1.5 * _unit(canvas))), cv2.LINE_AA)
    return result


def _box(canvas: np.ndarray, box: Float[np.ndarray, " 4"], colour: tuple[int, int, int]) -> None:
    corners = np.clip(np.rint(box), 0, [canvas.shape[1] - 1, canvas.shape[0] - 1] * 2).astype(int).tolist()
    width = max(2, round(2 * _unit(canvas)))
    cv2.rectangle(canvas, corners[:2], corners[2:], (255, 255, 255), width + 2, cv2.LINE_AA)
    cv2.rectangle(canvas, corners[:2], corners[2:], colour, width, cv2.LINE_AA)


def _point(canvas: np.ndarray, point: Float[np.ndarray, " 2"], colour: tuple[int, int, int]) -> None:
    centre, unit = np.rint(point).astype(int).tolist(), _unit(canvas)
    cv2.circle(canvas, centre, max(5, round(6 * unit)), (255, 255, 255), -1, cv2.LINE_AA)
    cv2.circle(canvas, centre, max(3, round(4 * unit)), colour, -1, cv2.LINE_AA)


def _labelled(canvas: np.ndarray, boxes: Float[np.ndarray, "N 4"], labels: list[str]) -> np.ndarray:
    """A tag at the upper left corner of every box, moved down where it would hide an earlier one."""
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    font = _font(round(15 * _unit(canvas)))
    pad = max(3, round(font.size / 4))
    taken: list[tuple[float, float, float, float]] = []
    for i, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        width, height = draw.textlength(label, font) + 2 * pad, font.size + 1.5 * pad
        x = float(np.clip(box[0], 0, max(0, image.width - width)))
        y = float(box[1] - height if box[1] >= height else box[1])
        while any(x < t[2] and t[0] < x + width and y < t[3] and t[1] < y + height for t in taken):
            y += height + 1
        y = min(y, image.height - height)
        taken.append((x, y, x + width, y + height))
        colour = _colour(i)
        draw.rounded_rectangle(taken[-1], pad, fill=colour)
        ink = (20, 20, 20) if np.dot(colour, (0.299, 0.587, 0.114)) > 150 else (255, 255, 255)
        draw.text((x + pad, y + height / 2), label, ink, font, anchor="lm")
    return np.asarray(image)


def _no_target(canvas: np.ndarray, text: str) -> np.ndarray:
    """The picture faded, with a banner across."""
    grey = cv2.cvtColor(canvas, cv2.COLOR_RGB2GRAY)[..., None]
    faded = (0.35 * canvas + 0.45 * grey + 0.2 * 255).astype(np.uint8)
    image = Image.fromarray(faded)
    draw = ImageDraw.Draw(image)
    font = _font(min(round(20 * _unit(canvas)), int(image.width / (0.62 * len(text)))))
    half_width, half_height = draw.textlength(text, font) / 2 + font.size * 0.8, font.size * 0.9
    x, y = image.width / 2, image.height / 2
    box = (x - half_width, y - half_height, x + half_width, y + half_height)
    draw.rounded_rectangle(box, half_height, fill=ALERT, outline=(255, 255, 255), width=max(1, round(font.size / 10)))
    draw.text((x, y), text, (255, 255, 255), font, anchor="mm")
    return np.asarray(image)


def _headed(panel: np.ndarray, text: str) -> np.ndarray:
    font = _font(round(14 * _unit(panel)))
    strip = Image.new("RGB", (panel.shape[1], round(2 * font.size)), BAR)
    ImageDraw.Draw(strip).text((font.size * 0.8, font.size), text, SOFT_INK, font, anchor="lm")
    return np.concatenate([np.asarray(strip), panel])


def _side_by_side(panels: list[np.ndarray]) -> np.ndarray:
    gap = np.full((panels[0].shape[0], 6, 3), BAR, np.uint8)
    body = np.concatenate([part for panel in panels for part in (gap, panel)][1:], axis=1)
    margin = max(0, MIN_WIDTH - body.shape[1])
    return cv2.copyMakeBorder(body, 0, 0, margin // 2, margin - margin // 2, cv2.BORDER_CONSTANT, value=BAR)


def _caption(width: int, unit: float, expression: str, verdict: str) -> np.ndarray:
    """The sentence, wrapped, and under it what was found."""
    font, small = _font(round(17 * unit)), _font(round(13 * unit))
    margin = round(font.size)
    lines = _wrapped(" ".join(expression.split()), font, width - 2 * margin)
    step = round(font.size * 1.35)
    bar = Image.new("RGB", (width, round(margin * 1.6) + step * len(lines) + round(small.size * 1.5)), BAR)
    draw = ImageDraw.Draw(bar)
    for i, line in enumerate(lines):
        draw.text((margin, margin * 0.8 + i * step), line, INK, font)
    draw.text((margin, margin * 0.9 + len(lines) * step), verdict, SOFT_INK, small)
    return np.asarray(bar)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int, most: int = 4) -> list[str]:
    """At most `most` lines; a word wider than a line is cut, and what does not fit ends in an ellipsis."""
    lines, rest = [], text
    while rest and len(lines) < most:
        ends = range(1, min(len(rest), width) + 1)
        end = max(1, bisect_right(ends, width, key=lambda end: font.getlength(rest[:end])))
        space = rest.rfind(" ", 0, end + 1)
        if end < len(rest) and space > 0:
            end = space
        lines.append(rest[:end])
        rest = rest[end:].lstrip()
    if rest:
        lines[-1] = lines[-1][:-1].rstrip() + "…"
    return lines


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """PIL's own font: latin letters; other scripts show as empty boxes."""
    font = ImageFont.load_default(max(8, size))
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font
