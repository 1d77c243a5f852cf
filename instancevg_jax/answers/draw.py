"""Draws an answer on its picture: outlined masks, boxes, scores and the sentence, or that there is no target.

Numpy and OpenCV only. Small pictures are enlarged until text is legible on them.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from instancevg_jax.answers.grounding import Grounding
from instancevg_jax.boxes import pairwise_iou
from instancevg_jax.errors import InputError
from instancevg_jax.files import write_atomically

MIN_SIDE = 480  # pixels of the longer side; smaller pictures are enlarged
MIN_WIDTH = 200  # pixels; narrower pictures get a margin, so that the sentence below can be read
TINT = 0.1  # opacity of a mask: an object keeps its own colour
WEIGHT = 400  # of the font: regular
SMOOTH = 0.8  # pixels of the network's mask: width of the blur that rounds its stairs
SLIVER = 80  # of the longer side; what only the merged mask covers is shown where it is about twice as thick
SAME_OBJECT = 0.5  # box IoU from which an answer and a true object share a colour
PALETTE = (
    (0, 158, 255), (255, 106, 51), (54, 196, 96), (236, 64, 144), (255, 196, 25),
    (146, 92, 255), (0, 196, 186), (196, 120, 60), (140, 190, 30), (255, 128, 196),
)  # fmt: skip
MERGED_COLOUR = (245, 245, 245)  # of what only the merged mask covers
BAR, INK, SOFT_INK, NOTE = (24, 26, 31), (244, 245, 247), (160, 166, 178), (255, 196, 25)
ALERT, UNSURE = (214, 48, 49), (84, 94, 112)  # banners of "no target" and of "nothing above the threshold"


@dataclass(frozen=True)
class TrueObjects:
    """The objects that a sentence really refers to, in the picture's own pixels. N may be 0."""

    boxes_xyxy: np.ndarray  # [N, 4]
    masks: np.ndarray  # [N, H, W] bool


def draw_grounding(
    picture: UInt8[np.ndarray, "H W 3"],
    grounding: Grounding,
    expression: str,
    truth: TrueObjects | None = None,
    *,
    notes: Sequence[str] = (),
) -> UInt8[np.ndarray, "H2 W2 3"]:
    """The answer on the picture, above a bar with the sentence; with `truth`, the ground truth next to it.

    An answer and the true object that it overlaps have the same colour.

    Args:
        picture: RGB.
        grounding: the answer, in this picture's pixels.
        expression: the sentence, as the user wrote it.
        truth: what it should have been, if known.
        notes: what the reader should know about the answer, one line each.

    Returns:
        A new RGB picture, at least MIN_SIDE pixels along the longer side, higher by the bar.
    """
    panels = [draw_answer(picture, grounding, expression, truth)]
    if truth is not None:
        panels = [headed(panels[0], "prediction"), headed(draw_truth(picture, truth), "ground truth")]
    body = side_by_side(panels)
    legend = "white: only in the merged mask" if _merged_only(grounding).any() else ""
    return np.concatenate(
        [body, caption(body.shape[1], unit_of(panels[0]), expression, grounding.verdict, legend, notes)]
    )


def write_picture(path: Path, picture: UInt8[np.ndarray, "H W *rgb"]) -> None:
    """Write an RGB or grey picture in the format of the path's suffix. Raises InputError where that fails."""
    order = np.ascontiguousarray(picture[..., ::-1] if picture.ndim == 3 else picture)
    done, data = cv2.imencode(path.suffix.lower(), order)
    if not done:
        raise InputError(
            f"{path}: a picture of {picture.shape[1]} x {picture.shape[0]} pixels cannot be written as {path.suffix}"
        )
    try:
        write_atomically(path, data.tobytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error


def _colours(grounding: Grounding, truth: TrueObjects | None) -> list[int]:
    """Index of each object's colour: of the true object that it overlaps most, or one that no true object has."""
    if truth is None:
        return list(range(len(grounding)))
    overlaps = pairwise_iou(grounding.boxes_xyxy, np.asarray(truth.boxes_xyxy, np.float32).reshape(-1, 4))
    indices, unmatched = [], len(truth.boxes_xyxy)
    for row in overlaps:
        best = int(row.argmax()) if len(row) else -1
        if best >= 0 and row[best] >= SAME_OBJECT:
            indices.append(best)
            overlaps[:, best] = 0
        else:
            indices.append(unmatched)
            unmatched += 1
    return indices


def _merged_only(grounding: Grounding) -> Bool[np.ndarray, "H W"]:
    """Where only the merged mask is, without slivers along the objects' edges."""
    alone = (grounding.mask & ~grounding.masks.any(axis=0)).astype(np.uint8)
    side = 2 * round(max(alone.shape) / SLIVER) + 1
    return cv2.morphologyEx(alone, cv2.MORPH_OPEN, np.ones((side, side), np.uint8)).astype(bool)


def draw_answer(
    picture: UInt8[np.ndarray, "H W 3"], grounding: Grounding, expression: str = "", truth: TrueObjects | None = None
) -> UInt8[np.ndarray, "H2 W2 3"]:
    """The answer on the picture alone, as in `draw_grounding`. `expression` is part of each label; `truth` is not drawn."""
    scale, colours = _scale(picture), _colours(grounding, truth)
    canvas = enlarged(picture, scale)
    if not grounding.exists:
        return _faded(canvas, grounding.verdict, ALERT if grounding.says_no_target else UNSURE)
    step = 1.0  # picture pixels per mask pixel, of masks that were resized by nearest neighbour
    if grounding.evidence is not None:
        step = picture.shape[1] / grounding.evidence.masks.shape[2]
    canvas = tinted(canvas, _merged_only(grounding), MERGED_COLOUR, step)
    order = range(len(grounding) - 1, -1, -1)  # the best on top
    for i in order:
        canvas = tinted(canvas, grounding.masks[i], colour(colours[i]), step)
    for i in order:
        draw_box(canvas, grounding.boxes_xyxy[i] * scale, colour(colours[i]))
    labels = [(expression, f"{score:.2f}") for score in grounding.scores]
    return _labelled(canvas, grounding.boxes_xyxy * scale, labels, colours)


def draw_truth(picture: UInt8[np.ndarray, "H W 3"], truth: TrueObjects) -> UInt8[np.ndarray, "H2 W2 3"]:
    """The true objects on the picture, as in `draw_grounding`."""
    scale = _scale(picture)
    canvas = enlarged(picture, scale)
    if not len(truth.boxes_xyxy):
        return _faded(canvas, "no target", ALERT)
    for i, (mask, box) in enumerate(zip(truth.masks, truth.boxes_xyxy, strict=True)):
        canvas = tinted(canvas, mask, colour(i))
        draw_box(canvas, box * scale, colour(i))
    return canvas


def _scale(picture: np.ndarray) -> float:
    return max(1.0, MIN_SIDE / max(picture.shape[:2]))


def colour(index: int) -> tuple[int, int, int]:
    """The colour of object number `index`; they repeat after the last."""
    return PALETTE[index % len(PALETTE)]


def enlarged(picture: UInt8[np.ndarray, "H W 3"], scale: float) -> UInt8[np.ndarray, "H2 W2 3"]:
    """A copy, `scale` times as large."""
    if scale == 1:
        return picture.copy()
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA)


def unit_of(canvas: np.ndarray) -> float:
    """How much thicker lines and larger letters are than at MIN_SIDE."""
    height, width = canvas.shape[:2]
    return max(0.75, min(max(height, width), 2 * min(height, width)) / MIN_SIDE)


def tinted(
    canvas: UInt8[np.ndarray, "H W 3"],
    mask: Bool[np.ndarray, "h w"],
    shade: tuple[int, int, int],
    step: float = 1.0,
) -> UInt8[np.ndarray, "H W 3"]:
    """The mask as a light tint with an outline, smoothed where a pixel of the network's mask covers several of the canvas.

    Args:
        canvas: where to draw; it is not changed.
        mask: of any size.
        shade: its colour.
        step: pixels of `mask` per pixel of the network's mask that it was resized from.
    """
    height, width = canvas.shape[:2]
    soft, coarse = mask.astype(np.float32), max(step, 1) * width / mask.shape[1]
    if coarse > 1:
        grid = max(1, round(width / coarse)), max(1, round(height / coarse))
        soft = cv2.resize(soft, grid, interpolation=cv2.INTER_AREA)
        soft = cv2.GaussianBlur(soft, (0, 0), SMOOTH, borderType=cv2.BORDER_REPLICATE)
    inside = cv2.resize(soft, (width, height), interpolation=cv2.INTER_LINEAR) >= 0.5
    result = canvas.copy()
    result[inside] = (canvas[inside] * (1 - TINT) + np.asarray(shade) * TINT).astype(np.uint8)
    contours, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    line = max(1, round(1.5 * unit_of(canvas)))
    cv2.drawContours(result, contours, -1, (255, 255, 255), line + 2, cv2.LINE_AA)
    cv2.drawContours(result, contours, -1, shade, line, cv2.LINE_AA)
    return result


def draw_box(canvas: np.ndarray, box: Float[np.ndarray, " 4"], shade: tuple[int, int, int]) -> None:
    """Draw the outline of (x1, y1, x2, y2), in pixels of the canvas, into it."""
    corners = np.clip(np.rint(box), 0, [canvas.shape[1] - 1, canvas.shape[0] - 1] * 2).astype(int).tolist()
    width = max(2, round(2 * unit_of(canvas)))
    cv2.rectangle(canvas, corners[:2], corners[2:], (255, 255, 255), width + 2, cv2.LINE_AA)
    cv2.rectangle(canvas, corners[:2], corners[2:], shade, width, cv2.LINE_AA)


def draw_point(canvas: np.ndarray, point: Float[np.ndarray, " 2"], shade: tuple[int, int, int]) -> None:
    """Draw (x, y), in pixels of the canvas, into it as a dot."""
    centre, unit = np.rint(point).astype(int).tolist(), unit_of(canvas)
    cv2.circle(canvas, centre, max(5, round(6 * unit)), (255, 255, 255), -1, cv2.LINE_AA)
    cv2.circle(canvas, centre, max(3, round(4 * unit)), shade, -1, cv2.LINE_AA)


def _labelled(
    canvas: np.ndarray, boxes: Float[np.ndarray, "N 4"], labels: list[tuple[str, str]], colours: list[int]
) -> np.ndarray:
    """A tag at the upper left corner of every box, moved down where it would hide an earlier one.

    A label is the sentence and the score. The sentence is cut to the box's width, or to a share of the picture's if that is
    more, or left out where nothing fits.
    """
    size = round(14 * unit_of(canvas))
    pad = max(3, round(size / 4))
    share = canvas.shape[1] / min(1 + len(boxes), 4)
    taken: list[tuple[float, float, float, float]] = []
    for box, (sentence, score), index in zip(boxes, labels, colours, strict=True):
        room = max(box[2] - box[0], share) - text_width(f"{score} ", size) - 2 * pad
        label = f"{_cut(sentence, size, room)} {score}".strip()
        width, height = text_width(label, size) + 2 * pad, size + 1.5 * pad
        x = float(np.clip(box[0], 0, max(0, canvas.shape[1] - width)))
        inside = box[1] if box[3] - box[1] > 2 * height else box[3]  # or below, where it would hide a small object
        y = float(box[1] - height if box[1] >= height else inside)
        while any(x < t[2] and t[0] < x + width and y < t[3] and t[1] < y + height for t in taken):
            y += height + 1
        y = min(y, canvas.shape[0] - height)
        taken.append((x, y, x + width, y + height))
        shade = colour(index)
        _draw_tag(canvas, taken[-1], pad, shade)
        ink = (20, 20, 20) if np.dot(shade, (0.299, 0.587, 0.114)) > 150 else (255, 255, 255)
        write(canvas, label, x + pad, y + height / 2, ink, size)
    return canvas


def _draw_tag(
    canvas: np.ndarray, box: tuple[float, float, float, float], radius: int, shade: tuple[int, int, int]
) -> None:
    """Fill a rectangle with rounded corners."""
    corners = np.rint(np.add(box, (radius, radius, -radius, -radius))).astype(int).tolist()
    cv2.rectangle(canvas, corners[:2], corners[2:], shade, -1)
    cv2.rectangle(canvas, corners[:2], corners[2:], shade, 2 * radius, cv2.LINE_AA)  # a thick line has round corners


def _cut(text: str, size: int, width: float) -> str:
    """As much of a sentence as fits into `width` pixels, with an ellipsis if cut; "" if less than three letters fit."""
    text = " ".join(text.split())
    ends = range(1, len(text) + 1)
    end = bisect_right(ends, width, key=lambda end: text_width(text[:end] + "…" * (end < len(text)), size))
    if end == len(text):
        return text
    return text[:end].rstrip() + "…" if end >= 3 else ""


def _faded(canvas: np.ndarray, text: str, shade: tuple[int, int, int]) -> np.ndarray:
    """The picture faded, with a banner across it."""
    grey = cv2.cvtColor(canvas, cv2.COLOR_RGB2GRAY)[..., None]
    faded = (0.35 * canvas + 0.45 * grey + 0.2 * 255).astype(np.uint8)
    size = max(8, min(round(20 * unit_of(canvas)), int(canvas.shape[1] / (0.62 * len(text)))))
    width = text_width(text, size)
    x, y, rim = (canvas.shape[1] - width) / 2, canvas.shape[0] / 2, max(1, round(size / 10))
    left, right = (round(x), round(y)), (round(x + width), round(y))
    for thickness, fill in ((round(1.8 * size) + 2 * rim, (255, 255, 255)), (round(1.8 * size), shade)):
        cv2.line(faded, left, right, fill, thickness, cv2.LINE_AA)  # a thick line has round ends
    write(faded, text, x, y, (255, 255, 255), size)
    return faded


def headed(panel: np.ndarray, text: str) -> np.ndarray:
    """The panel under a strip with a heading, cut to its width."""
    size = max(13, round(14 * unit_of(panel)))
    strip = blank(2 * size, panel.shape[1])
    write(strip, _cut(text, size, panel.shape[1] - 1.2 * size), 0.6 * size, size, SOFT_INK, size)
    return np.concatenate([strip, panel])


def blank(height: int, width: int) -> UInt8[np.ndarray, "H W 3"]:
    """A picture of the bar's colour."""
    return np.full((height, width, 3), BAR, np.uint8)


def side_by_side(panels: list[np.ndarray]) -> np.ndarray:
    """Panels of one height in a row, at least MIN_WIDTH wide."""
    gap = np.full((panels[0].shape[0], 6, 3), BAR, np.uint8)
    body = np.concatenate([part for panel in panels for part in (gap, panel)][1:], axis=1)
    margin = max(0, MIN_WIDTH - body.shape[1])
    return cv2.copyMakeBorder(body, 0, 0, margin // 2, margin - margin // 2, cv2.BORDER_CONSTANT, value=BAR)


def caption(
    width: int, unit: float, expression: str, verdict: str, legend: str = "", notes: Sequence[str] = ()
) -> np.ndarray:
    """A bar with the sentence, wrapped; under it what was found, what colours mean, and notes."""
    size, small = round(17 * unit), round(13 * unit)
    margin = size
    rows = [(line, INK, size) for line in _wrapped(" ".join(expression.split()), size, width - 2 * margin)]
    below = "   ".join(filter(None, (verdict, legend)))
    rows += [(line, SOFT_INK, small) for line in _wrapped(below, small, width - 2 * margin)]
    rows += [(line, NOTE, small) for note in notes for line in _wrapped(note, small, width - 2 * margin)]
    steps = [round(1.35 * size) for _, _, size in rows]
    bar = blank(round(1.4 * margin) + sum(steps), width)
    y = 0.7 * margin
    for (line, ink, size), step in zip(rows, steps, strict=True):
        write(bar, line, margin, y + step / 2, ink, size)
        y += step
    return bar


def _wrapped(text: str, size: int, width: int, most: int = 4) -> list[str]:
    """At most `most` lines; a word wider than a line is cut, and what does not fit ends in an ellipsis."""
    lines, rest = [], text
    while rest and len(lines) < most:
        ends = range(1, min(len(rest), width) + 1)
        end = max(1, bisect_right(ends, width, key=lambda end: text_width(rest[:end], size)))
        space = rest.rfind(" ", 0, end + 1)
        if end < len(rest) and space > 0:
            end = space
        lines.append(rest[:end])
        rest = rest[end:].lstrip()
    if rest:
        lines[-1] = lines[-1][:-1].rstrip() + "…"
    return lines


def text_width(text: str, size: int) -> int:
    """Pixels that `write` covers from left to right."""
    return cv2.getTextSize((0, 0), _printable(text), (0, 0), _font(), size, WEIGHT)[2]


def write(canvas: np.ndarray, text: str, x: float, middle: float, ink: tuple[int, int, int], size: int) -> None:
    """Write a line of text into the canvas, from `x` on, vertically centred at `middle`."""
    cv2.putText(canvas, _printable(text), (round(x), round(middle + 0.35 * size)), ink, _font(), size, WEIGHT)


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _font() -> cv2.FontFace:
    """OpenCV's own font, which has most scripts: one per call, since threads cannot share it."""
    return cv2.FontFace("sans")
