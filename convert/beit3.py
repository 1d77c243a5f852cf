"""Official BEiT-3 checkpoints, and a backbone of any picture size brought to the one that a config asks for."""

import math
from collections.abc import Mapping

import numpy as np

from convert.instancevg import backbone_rules
from convert.rules import Ignore, RuleTable, Tensor, is_float
from instancevg_jax.config import ModelConfig
from instancevg_jax.errors import InputError
from instancevg_jax.models.positions import FIRST_ROWS, resize_bicubic, resize_positions

PREFIX = "beit3"
POSITIONS = "encoder.embed_positions.A.weight"
PATCHES = "vision_embed.proj.weight"

TABLE = RuleTable(
    rules=backbone_rules(PREFIX, "backbone"),
    ignores=(
        Ignore(r"beit3\.vision_embed\.mask_token", "masked pretraining only"),
        Ignore(r"m[li]m_head\..*", "masked pretraining's heads"),
        Ignore(r"(head|fc_norm|pooler|vision_head|language_head)\..*|logit_scale", "heads of fine-tuning tasks"),
    ),
)


def fit_to(state: Mapping[str, Tensor], config: ModelConfig, source: str, prefix: str = PREFIX) -> dict[str, Tensor]:
    """The state dict with its position table and patch embedding resized to the config's picture and patch size.

    A file does not say its picture's proportions: a table of a square number of patches is taken for that of a square picture. What
    fits already is passed on as it is. `prefix`: of the backbone's keys. Raises InputError naming `source` if a tensor
    cannot be resized.
    """
    fitted = dict(state)
    grid = (config.image_height // config.patch_size, config.image_width // config.patch_size)
    positions, patches = f"{prefix}.{POSITIONS}", f"{prefix}.{PATCHES}"
    if positions in state:
        count = (state[positions].shape or (0,))[0] - FIRST_ROWS
        side = math.isqrt(max(count, 0))
        square = (side, side) if side and side * side == count else None
        if square and square != grid:
            fitted[positions] = resize_positions(_floats(state, positions, 2, source), square, grid)
        elif not square and count != grid[0] * grid[1]:
            rows = count + FIRST_ROWS
            raise InputError(f"{source}: {positions} has {rows} rows; expected 3 and a square number to resize from")
    patch = (config.patch_size, config.patch_size)
    if patches in state and state[patches].shape[-2:] != patch:
        fitted[patches] = resize_bicubic(_floats(state, patches, 4, source), patch)
    return fitted


def _floats(state: Mapping[str, Tensor], key: str, dimensions: int, source: str) -> np.ndarray:
    value = np.asarray(state[key])
    if value.ndim != dimensions or 0 in value.shape:
        raise InputError(f"{source}: {key} has the shape {list(value.shape)}; expected {dimensions} dimensions")
    if not is_float(value.dtype):
        raise InputError(f"{source}: {key} holds {value.dtype}; expected floating point numbers")
    return value.astype(np.float32)
