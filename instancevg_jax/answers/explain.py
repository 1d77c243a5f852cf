"""Draws how an answer came about: the attention of each token, and every query, counted or not.

Source of the idea: the training pictures of the original (models/det_seg/mix_gref_unimodel.py).
"""

import itertools

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from instancevg_jax.answers.draw import (
    BAR,
    INK,
    blank,
    caption,
    colour,
    draw_box,
    draw_point,
    enlarged,
    headed,
    tinted,
    write,
)
from instancevg_jax.answers.grounding import Evidence, Grounding
from instancevg_jax.errors import InputError

TILE = 260  # pixels of a tile's longer side
COLUMNS = 5
HEAT = 0.55  # opacity of a heat map


def draw_explanation(
    picture: UInt8[np.ndarray, "H W 3"], grounding: Grounding, expression: str
) -> UInt8[np.ndarray, "H2 W2 3"]:
    """The point map, the tokens' attention maps and all queries of an answer, in one RGB picture.

    Args:
        picture: RGB, the picture of the answer.
        grounding: of a `Predictor`.
        expression: the sentence.

    Raises:
        InputError: the grounding has no evidence, as one that was not made by a Predictor.
    """
    evidence = grounding.evidence
    if evidence is None:
        raise InputError("this grounding has no evidence to explain it; ask a Predictor")
    parts = [
        _title("Point map: where the tokens look, and the points that the queries start from, in order of choice"),
        draw_point_map(picture, evidence),
        _title("Attention of each query's token (each map is scaled to its own range)"),
        draw_words(picture, evidence),
        _title(f"All {len(evidence.scores)} queries: score, box, mask, point"),
        draw_queries(picture, evidence),
        caption(TILE * COLUMNS, 1.0, expression, grounding.verdict, notes=grounding.notes),
    ]
    width = max(part.shape[1] for part in parts)
    return np.concatenate([_padded(part, part.shape[0], width) for part in parts])


def draw_point_map(picture: UInt8[np.ndarray, "H W 3"], evidence: Evidence) -> UInt8[np.ndarray, "H2 W2 3"]:
    """The pooled attention as a heat map over the picture, and the queries' points, numbered in the order of their choice."""
    scale = 2 * TILE / max(picture.shape[:2])
    canvas = _heat(enlarged(picture, scale), evidence.point_map)
    for i, point in enumerate(evidence.points_xy):
        draw_point(canvas, point * scale, colour(i))
    for i, (x, y) in enumerate(evidence.points_xy * scale):
        for right, down in itertools.product((-1, 0, 1), repeat=2):  # a black rim
            write(canvas, str(i + 1), x + 8 + right, y + down, (0, 0, 0), 14)
        write(canvas, str(i + 1), x + 8, y, (255, 255, 255), 14)
    return canvas


def draw_words(picture: UInt8[np.ndarray, "H W 3"], evidence: Evidence) -> UInt8[np.ndarray, "H2 W2 3"]:
    """A tile per query with the attention map of the token that it starts from."""
    canvas = _tile(picture)
    tiles = [
        headed(_heat(canvas, attention), f"{i}  {token}" if token else f"{i}  (no token of its own)")
        for i, (token, attention) in enumerate(zip(evidence.tokens, evidence.attention, strict=True), 1)
    ]
    return _grid(tiles)


def draw_queries(picture: UInt8[np.ndarray, "H W 3"], evidence: Evidence) -> UInt8[np.ndarray, "H2 W2 3"]:
    """A tile per query with its mask, box and point; the heading has its score and whether it counts."""
    canvas = _tile(picture)
    scale = canvas.shape[1] / picture.shape[1]
    tiles = []
    for i, counted in enumerate(evidence.counted):
        drawn = tinted(canvas, evidence.masks[i], colour(i))
        draw_box(drawn, evidence.boxes_xyxy[i] * scale, colour(i))
        draw_point(drawn, evidence.points_xy[i] * scale, colour(i))
        drawn = drawn if counted else (drawn * 0.6).astype(np.uint8)
        tiles.append(headed(drawn, f"{i + 1}  {evidence.scores[i]:.3f}  {'counts' if counted else 'does not count'}"))
    return _grid(tiles)


def _tile(picture: np.ndarray) -> np.ndarray:
    return enlarged(picture, TILE / max(picture.shape[:2]))


def _heat(canvas: UInt8[np.ndarray, "H W 3"], values: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "H W 3"]:
    """The canvas in grey under a heat map of the values, scaled from their minimum to their maximum."""
    span = float(values.max() - values.min())
    levels = ((values - values.min()) / (span or 1) * 255).astype(np.uint8)
    smooth = cv2.resize(levels, (canvas.shape[1], canvas.shape[0]), interpolation=cv2.INTER_LINEAR)
    hot = cv2.applyColorMap(smooth, cv2.COLORMAP_TURBO)[..., ::-1]
    grey = cv2.cvtColor(canvas, cv2.COLOR_RGB2GRAY)[..., None]
    return (grey * (1 - HEAT) + hot * HEAT).astype(np.uint8)


def _grid(tiles: list[np.ndarray]) -> np.ndarray:
    """Tiles of one size in rows of COLUMNS."""
    height, width = tiles[0].shape[:2]
    cells = [_padded(tile, height + 4, width + 4) for tile in tiles]
    cells += [np.full_like(cells[0], BAR)] * (-len(cells) % COLUMNS)
    return np.concatenate([np.concatenate(cells[i : i + COLUMNS], axis=1) for i in range(0, len(cells), COLUMNS)])


def _padded(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    bottom, right = height - picture.shape[0], width - picture.shape[1]
    return cv2.copyMakeBorder(picture, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=BAR)


def _title(text: str) -> np.ndarray:
    strip = blank(40, TILE * COLUMNS)
    write(strip, text, 8, 22, INK, 16)
    return strip
