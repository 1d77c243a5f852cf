"""Backbones brought to another picture or patch size. The numbers are the original's (F1, f1_pos_interp)."""

import dataclasses

import numpy as np
import pytest

from convert import beit3
from instancevg_jax.config import tiny
from instancevg_jax.errors import InputError
from instancevg_jax.models.positions import resize_bicubic, resize_positions
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


POSITIONS, PATCHES = f"beit3.{beit3.POSITIONS}", f"beit3.{beit3.PATCHES}"


def _state(rows: int, patch: int, dtype=np.float32):
    random = np.random.default_rng(0)
    return {
        POSITIONS: random.standard_normal((rows, 4)).astype(dtype),
        PATCHES: random.standard_normal((4, 3, patch, patch)).astype(dtype),
    }


def test_resized_only_where_needed():
    config = tiny()
    state = _state(3 + 16, 16)
    assert all(value is state[key] for key, value in beit3.fit_to(state, config, "x").items())
    config.image_height, config.image_width, config.patch_size = 96, 160, 32
    fitted = beit3.fit_to(_state(3 + 196, 16, np.float16), config, "x")
    assert fitted[POSITIONS].shape == (3 + 15, 4)
    assert fitted[PATCHES].shape == (4, 3, 32, 32)
    assert all(np.asarray(value).dtype == np.float32 for value in fitted.values())


@pytest.mark.parametrize("size", [(32, 128), (128, 32)])
def test_a_grid_of_as_many_patches_but_other_sides_is_resized(size):
    """4 x 4 and 2 x 8 patches have tables of one shape; their rows mean other places."""
    config = dataclasses.replace(tiny(), image_height=size[0], image_width=size[1])
    state = _state(3 + 16, 16)
    fitted = beit3.fit_to(state, config, "x")
    grid = (size[0] // 16, size[1] // 16)
    assert np.array_equal(fitted[POSITIONS], resize_positions(state[POSITIONS], (4, 4), grid))
    assert not np.array_equal(fitted[POSITIONS], state[POSITIONS])


def test_a_table_of_no_square_fits_its_own_grid_alone():
    config = dataclasses.replace(tiny(), image_height=32, image_width=64)
    state = _state(3 + 8, 16)
    assert beit3.fit_to(state, config, "x")[POSITIONS] is state[POSITIONS]


@pytest.mark.parametrize("dtype", [np.int64, np.complex64])
@pytest.mark.parametrize("key", [POSITIONS, PATCHES])
def test_numbers_that_are_no_floats_are_not_resized(dtype, key):
    state = _state(3 + 9, 8)
    state[key] = state[key].astype(dtype)
    with pytest.raises(InputError, match=f"x: {key} holds {np.dtype(dtype)}; expected floating point"):
        beit3.fit_to(state, tiny(), "x")


def test_first_rows_are_kept_and_constants_stay_constant():
    table = np.concatenate([np.arange(12).reshape(3, 4), np.full((196, 4), 2.5)]).astype(np.float32)
    resized = resize_positions(table, (14, 14), (6, 10))
    assert np.array_equal(resized[:3], table[:3])
    np.testing.assert_allclose(resized[3:], 2.5, rtol=1e-6)


@pytest.mark.parametrize("rows", [3 + 15, 2, 3, 0])
def test_table_of_no_square_grid_is_refused(rows):
    with pytest.raises(InputError, match=f"x: .*(has {rows} rows; expected 3 and a square|has the shape)"):
        beit3.fit_to(_state(rows, 16), tiny(), "x")
