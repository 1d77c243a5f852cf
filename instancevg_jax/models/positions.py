"""Resizes a backbone's position table and patch embedding for another picture or patch size.

Source: the original's models/vis_encs/beit/beit3.py, `load_model_and_may_interpolate`; torch's bicubic interpolation
(align_corners=False, no antialiasing), whose values OpenCV's equal.
"""

from collections.abc import Mapping
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32

from instancevg_jax.config import ModelConfig

FIRST_ROWS = 3  # of the position table, before those of the patches: two unused ones and the class token's
POSITIONS, PATCHES = "backbone.vision_positions", "backbone.patch_embed.kernel"


class Grid(NamedTuple):
    """The grid of patches of a picture: numbers of rows and columns, and the side of a patch in pixels."""

    height: int
    width: int
    patch: int

    @classmethod
    def of(cls, model: ModelConfig) -> "Grid":
        return cls(model.image_height // model.patch_size, model.image_width // model.patch_size, model.patch_size)


def fit_backbone(params: Mapping[str, np.ndarray], old: Grid, new: Grid) -> dict[str, np.ndarray]:
    """Position table and patch embedding, by name, resized from a model with the grid `old` for one with `new`.

    Returns only what has to be resized, as float32.
    """
    fitted = {}
    if old[:2] != new[:2]:
        fitted[POSITIONS] = resize_positions(params[POSITIONS].astype(np.float32), old[:2], new[:2])
    if old.patch != new.patch:  # [patch * patch * 3, D], rows in the order y, x, channel
        squares = params[PATCHES].astype(np.float32).reshape(old.patch, old.patch, -1).transpose(2, 0, 1)
        resized = resize_bicubic(squares, (new.patch, new.patch)).transpose(1, 2, 0)
        fitted[PATCHES] = resized.reshape(new.patch * new.patch * 3, -1)
    return fitted


def resize_positions(
    table: Float32[np.ndarray, "rows D"], old: tuple[int, int], new: tuple[int, int]
) -> Float32[np.ndarray, "new D"]:
    """Resize a position table from `old` to `new` = (rows, columns) of patches. Its first 3 rows are kept."""
    grid = table[FIRST_ROWS:].reshape(*old, -1).transpose(2, 0, 1)
    resized = resize_bicubic(grid, new).transpose(1, 2, 0).reshape(-1, table.shape[1])
    return np.concatenate([table[:FIRST_ROWS], resized])


def resize_bicubic(x: Float32[np.ndarray, "... h w"], size: tuple[int, int]) -> Float32[np.ndarray, "... H W"]:
    """torch.nn.functional.interpolate(mode="bicubic", align_corners=False) over the last two axes."""
    planes = np.ascontiguousarray(x).reshape(-1, *x.shape[-2:])
    resized = [cv2.resize(plane, size[::-1], interpolation=cv2.INTER_CUBIC) for plane in planes]
    return np.stack(resized).reshape(*x.shape[:-2], *size)
