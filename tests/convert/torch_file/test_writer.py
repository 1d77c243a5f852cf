"""Files written here, read back here and, where it is installed, by torch."""

import ml_dtypes
import numpy as np
import pytest

from convert.torch_file import writer, zip_index
from convert.torch_file.reader import read_checkpoint, state_dict
from instancevg_jax.errors import InputError

RANDOM = np.random.default_rng(0)
SHARED = RANDOM.standard_normal((2, 3)).astype(np.float32)
STATE = {
    "b.weight": SHARED.T,
    "a.weight": SHARED,
    "a.alias": SHARED,
    "half": RANDOM.standard_normal(5).astype(np.float16),
    "bfloat": np.arange(6).astype(ml_dtypes.bfloat16).reshape(3, 2).T,
    "count": np.array(7, np.int64),
    "flags": np.array([True, False]),
    "empty": np.zeros((0, 4), np.float32),
    "big": np.arange(3, dtype=">f4"),
    "größe": np.arange(100_000, dtype=np.uint8)[::-1],
}


def test_round_trip_is_exact_and_keeps_the_order(tmp_path):
    writer.write_checkpoint(tmp_path / "x.pth", STATE)
    checkpoint = read_checkpoint(tmp_path / "x.pth")
    assert checkpoint.checksums
    tensors = state_dict(checkpoint)
    assert list(tensors) == list(STATE)
    for key, array in STATE.items():
        value = tensors[key].numpy()
        assert (value.dtype, value.shape) == (array.dtype.newbyteorder("="), array.shape)
        assert np.array_equal(value, array)
    assert tensors["a.alias"].storage is tensors["a.weight"].storage
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


def test_records_are_aligned_and_the_file_is_reproducible(tmp_path):
    for name in ("x.pth", "y.pth"):
        writer.write_checkpoint(tmp_path / name, STATE)
    assert (tmp_path / "x.pth").read_bytes() == (tmp_path / "y.pth").read_bytes()
    with (tmp_path / "x.pth").open("rb") as file:
        records = zip_index.read_index(file, "x")
    assert all(record.offset % writer.ALIGNMENT == 0 for record in records.values())


def test_torch_opens_it(tmp_path):
    torch = pytest.importorskip("torch")
    writer.write_checkpoint(tmp_path / "x.pth", STATE)
    for options in ({}, {"mmap": True}):
        state = torch.load(tmp_path / "x.pth", weights_only=True, **options)["state_dict"]
        assert type(state).__name__ == "OrderedDict"
        assert list(state) == list(STATE)
        for key, array in STATE.items():
            assert str(state[key].dtype) == f"torch.{array.dtype.newbyteorder('=').name}"
            assert tuple(state[key].shape) == array.shape
            assert np.array_equal(state[key].double().numpy(), array.astype(np.float64)), key
        assert state["a.alias"].data_ptr() == state["a.weight"].data_ptr()


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match="words has dtype <U1"):
        writer.write_checkpoint(tmp_path / "x.pth", {"words": np.array(["a"])})
    with pytest.raises(InputError, match="no such directory"):
        writer.write_checkpoint(tmp_path / "absent" / "x.pth", {})
    with pytest.raises(InputError, match="is a directory"):
        writer.write_checkpoint(tmp_path, {})
    assert list(tmp_path.iterdir()) == []
