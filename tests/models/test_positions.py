"""Backbones brought to another picture or patch size. The numbers are the original's (F1, f1_pos_interp)."""

import numpy as np
import pytest

from instancevg_jax.models.positions import PATCHES, POSITIONS, Grid, fit_backbone, resize_bicubic, resize_positions
from tests import oracle


def test_position_tables_equal_the_originals():
    fixture = oracle.fixture("f1_pos_interp")
    for side in (4, 10, 20):
        resized = resize_positions(fixture["ckpt_pos_A"], (14, 14), (side, side))
        np.testing.assert_allclose(resized, fixture[f"pos_A_14to{side}"], rtol=0, atol=2e-6)


def test_patch_embedding_equals_the_originals():
    fixture = oracle.fixture("f1_pos_interp")
    resized = resize_bicubic(fixture["ckpt_proj"], (32, 32))
    np.testing.assert_allclose(resized, fixture["proj_16to32"], rtol=0, atol=2e-6)


def test_bicubic_equals_torch_for_every_shape():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((1, 2, 14, 14)).astype(np.float32)
    for size in ((14, 14), (20, 30), (7, 5), (1, 40), (13, 15)):
        theirs = torch.nn.functional.interpolate(torch.tensor(x), size, mode="bicubic", align_corners=False).numpy()
        np.testing.assert_allclose(resize_bicubic(x, size), theirs, rtol=0, atol=5e-6)


def _params(rows: int, patch: int, dtype=np.float32):
    random = np.random.default_rng(0)
    table = random.standard_normal((rows, 4)).astype(dtype)
    return {POSITIONS: table, PATCHES: random.standard_normal((patch * patch * 3, 4)).astype(dtype)}


def test_resized_only_where_needed():
    assert not fit_backbone(_params(3 + 16, 16), Grid(4, 4, 16), Grid(4, 4, 16))
    fitted = fit_backbone(_params(3 + 196, 16, np.float16), Grid(14, 14, 16), Grid(3, 5, 32))
    assert fitted[POSITIONS].shape == (3 + 15, 4)
    assert fitted[PATCHES].shape == (32 * 32 * 3, 4)
    assert all(value.dtype == np.float32 for value in fitted.values())


@pytest.mark.parametrize("grid", [(2, 8), (8, 2)])
def test_a_grid_of_as_many_patches_but_other_sides_is_resized(grid):
    """4 x 4 and 2 x 8 patches have tables of one shape; their rows mean other places."""
    params = _params(3 + 16, 16)
    fitted = fit_backbone(params, Grid(4, 4, 16), Grid(*grid, 16))
    assert np.array_equal(fitted[POSITIONS], resize_positions(params[POSITIONS], (4, 4), grid))
    assert not np.array_equal(fitted[POSITIONS], params[POSITIONS])


def test_first_rows_are_kept_and_constants_stay_constant():
    table = np.concatenate([np.arange(12).reshape(3, 4), np.full((196, 4), 2.5)]).astype(np.float32)
    resized = resize_positions(table, (14, 14), (6, 10))
    assert np.array_equal(resized[:3], table[:3])
    np.testing.assert_allclose(resized[3:], 2.5, rtol=1e-6)
