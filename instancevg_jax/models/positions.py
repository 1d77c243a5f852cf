"""The backbone's position table and patch embedding, brought to another picture or patch size.

Source: the original's models/vis_encs/beit/beit3.py, `load_model_and_may_interpolate`; torch's bicubic interpolation
(align_corners=False, no antialiasing; Keys' cubic convolution with A = -0.75, edges repeated).
"""

import numpy as np
from jaxtyping import Float32

CUBIC = -0.75
FIRST_ROWS = 3  # of the position table: two unused ones, then the class token's


def resize_positions(
    table: Float32[np.ndarray, "rows D"], old: tuple[int, int], new: tuple[int, int]
) -> Float32[np.ndarray, "new D"]:
    """A position table for pictures of `new` = (h, w) patches, from one of `old`. Its first 3 rows are kept."""
    grid = table[FIRST_ROWS:].reshape(*old, -1).transpose(2, 0, 1)
    resized = resize_bicubic(grid, new).transpose(1, 2, 0).reshape(-1, table.shape[1])
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
