"""Official BEiT-3 checkpoints: pretrained at 224 pixels, or fine-tuned at 384 and 480, brought to the size a config asks for.

Source: the original's models/vis_encs/beit/beit3.py, `load_model_and_may_interpolate`; torch's bicubic interpolation
(align_corners=False, no antialiasing; Keys' cubic convolution with A = -0.75, edges repeated).
"""

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float32

from convert.instancevg import backbone_rules
from convert.rules import Ignore, RuleTable, Tensor
from instancevg_jax.config import ModelConfig
from instancevg_jax.errors import InputError

CUBIC = -0.75
FIRST_ROWS = 3  # of the position table: two unused ones, then the class token's
POSITIONS = "beit3.encoder.embed_positions.A.weight"
PATCHES = "beit3.vision_embed.proj.weight"

TABLE = RuleTable(
    rules=backbone_rules("beit3", "backbone"),
    ignores=(
        Ignore(r"beit3\.vision_embed\.mask_token", "masked pretraining only"),
        Ignore(r"m[li]m_head\..*", "masked pretraining's heads"),
        Ignore(r"(head|fc_norm|pooler|vision_head|language_head)\..*|logit_scale", "heads of fine-tuning tasks"),
    ),
)


def fit_to(state: Mapping[str, Tensor], config: ModelConfig, source: str) -> dict[str, Tensor]:
    """The state dict with its position table and patch embedding resized to the config's picture and patch size.

    Tables that fit already are passed on as they are. Raises InputError naming `source` if one cannot be resized.
    """
    fitted = dict(state)
    grid = (config.image_height // config.patch_size, config.image_width // config.patch_size)
    if POSITIONS in state and state[POSITIONS].shape[:1] != (FIRST_ROWS + grid[0] * grid[1],):
        fitted[POSITIONS] = resize_positions(_floats(state, POSITIONS, 2, source), grid, source)
    patch = (config.patch_size, config.patch_size)
    if PATCHES in state and state[PATCHES].shape[-2:] != patch:
        fitted[PATCHES] = resize_bicubic(_floats(state, PATCHES, 4, source), patch)
    return fitted


def resize_positions(
    table: Float32[np.ndarray, "rows D"], grid: tuple[int, int], source: str = "the file"
) -> Float32[np.ndarray, "new D"]:
    """A position table for pictures of `grid` = (h, w) patches, from one of a square grid. Its first 3 rows are kept."""
    side = math.isqrt(max(len(table) - FIRST_ROWS, 0))
    if side * side != len(table) - FIRST_ROWS or not side:
        raise InputError(f"{source}: {POSITIONS} has {len(table)} rows; expected 3 and a square number to resize from")
    squares = table[FIRST_ROWS:].reshape(side, side, -1).transpose(2, 0, 1)
    resized = resize_bicubic(squares, grid).transpose(1, 2, 0).reshape(-1, table.shape[1])
    return np.concatenate([table[:FIRST_ROWS], resized])


def resize_bicubic(x: Float32[np.ndarray, "... h w"], size: tuple[int, int]) -> Float32[np.ndarray, "... H W"]:
    """torch.nn.functional.interpolate(mode="bicubic", align_corners=False) over the last two axes."""
    rows, columns = (_bicubic_matrix(n, m) for n, m in zip(x.shape[-2:], size, strict=True))
    return (rows @ x.astype(np.float64) @ columns.T).astype(np.float32)


def _bicubic_matrix(old: int, new: int) -> np.ndarray:
    """[new, old]: what each new sample takes of the old ones."""
    centres = (np.arange(new) + 0.5) * (old / new) - 0.5
    first = np.floor(centres).astype(int)
    matrix = np.zeros((new, old))
    for tap in range(-1, 3):
        weights = _cubic(np.abs(centres - first - tap))
        np.add.at(matrix, (np.arange(new), np.clip(first + tap, 0, old - 1)), weights)
    return matrix


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' kernel at distances 0 <= x <= 2."""
    near = ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * CUBIC - 4 * CUBIC
    return np.where(x <= 1, near, far)


def _floats(state: Mapping[str, Tensor], key: str, dimensions: int, source: str) -> np.ndarray:
    if len(state[key].shape) != dimensions or 0 in state[key].shape:
        raise InputError(f"{source}: {key} has the shape {list(state[key].shape)}; expected {dimensions} dimensions")
    return np.asarray(state[key]).astype(np.float32)
