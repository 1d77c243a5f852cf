"""The reader against files that real torch wrote (tests/convert/make_data.py), and against honest oddities."""

import datetime
import decimal
import json
import os
import pathlib
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from convert.torch_file.reader import read_checkpoint, state_dict
from convert.torch_file.tensor_ref import TensorRef
from instancevg_jax.errors import InputError
from instancevg_jax.pickles.values import Inert
from tests.convert.torch_file import archives
from tests.convert.torch_file.archives import DATA

EXPECTED = json.loads((DATA / "expected.json").read_text())
FOUR = np.array([1.5, -2, 0, 7], np.float32)


def read(path, **kwargs):
    """The tensors, without the prefix that the training files carry."""
    return {key.removeprefix("module."): value for key, value in state_dict(read_checkpoint(path), **kwargs).items()}


@pytest.mark.parametrize("name", EXPECTED)
def test_file_of_real_torch_has_every_value(name):
    tensors = read(DATA / name)
    assert list(tensors) == list(EXPECTED[name])
    for key, expected in EXPECTED[name].items():
        array = tensors[key].numpy()
        assert (str(array.dtype), list(array.shape)) == (expected["dtype"], expected["shape"]), key
        assert tensors[key].shape == array.shape
        assert array.tobytes().hex() == expected["bytes"], key


def test_torch_reads_its_own_files_as_we_do():
    torch = pytest.importorskip("torch")
    for name in ("layouts.pth", "legacy.pth", "big_endian.pth"):
        theirs, ours = torch.load(DATA / name, weights_only=False), read(DATA / name)
        for key, value in theirs.items():
            assert np.array_equal(
                value.detach().to(torch.complex128).numpy(), ours[key].numpy().astype(np.complex128)
            ), key


def test_reading_does_not_import_torch():
    read_it = f"t.read_checkpoint({str(DATA / 'dtypes.pth')!r})"
    code = f"import sys; from convert.torch_file import reader as t; {read_it}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)


@pytest.mark.parametrize("name", ["training.pth", "training_legacy.pth"])
def test_training_entries_are_inert_data(name):
    data = read_checkpoint(DATA / name).data
    assert (data["epoch"], data["lr"], data["best_gIoU"], data["seen"]) == (3, 5e-4, 61.5, {1, 2})
    assert isinstance(data["args"], Inert)
    assert (data["args"].name, data["args"].state) == ("argparse.Namespace", {"name": "x", "sizes": [1, 2]})
    assert data["scheduler"]["milestones"] == {7: 1}
    assert isinstance(data["optimizer"]["state"][0]["max_exp_avg_sq"], TensorRef)


def test_averaged_weights_on_request():
    plain, averaged = read(DATA / "training.pth"), read(DATA / "training.pth", ema=True)
    assert plain.keys() == averaged.keys()
    assert np.array_equal(averaged["0.weight"].numpy(), plain["0.weight"].numpy() + 1)
    with pytest.raises(InputError, match="no ema_state_dict with tensors; its top level holds whole, transposed"):
        read(DATA / "layouts.pth", ema=True)


def test_tensor_among_the_metrics_does_not_hide_the_model(tmp_path):
    entries = archives.text("best_gIoU") + archives.tensor() + archives.text("state_dict")
    inner = b"}" + archives.text("module.weight") + archives.tensor() + b"s"
    path = archives.archive(tmp_path / "x.pth", b"\x80\x02}(" + entries + inner + b"u.", {"0": FOUR.tobytes()})
    assert list(read(path)) == ["weight"]


def test_a_pickled_module_says_what_to_save(tmp_path):
    path = archives.archive(
        tmp_path / "x.pth", b"\x80\x02cmodels.vg\nInstanceVG\n)\x81}" + archives.text("a") + b"Nsb."
    )
    with pytest.raises(InputError, match=r"holds an object of the class models\.vg\.InstanceVG; save its state_dict"):
        read(path)


def test_the_extra_state_of_modules_is_left_out(tmp_path):
    entries = archives.text("w") + archives.tensor() + archives.text("fc._extra_state") + b"N"
    path = archives.archive(tmp_path / "x.pth", b"\x80\x02}(" + entries + b"u.", {"0": FOUR.tobytes()})
    assert list(read(path)) == ["w"]


def test_missing_checksums_are_reported():
    assert read_checkpoint(DATA / "layouts.pth").checksums
    assert not read_checkpoint(DATA / "no_checksums.pth").checksums


def test_crafted_archive_reads(tmp_path):
    path = archives.archive(tmp_path / "x.pth", archives.state(archives.tensor((2, 2), (1, 2))), {"0": FOUR.tobytes()})
    assert np.array_equal(read(path)["weight"].numpy(), FOUR.reshape(2, 2).T)


def test_empty_tensor_of_an_empty_storage(tmp_path):
    where = archives.storage(count=0)
    path = archives.archive(
        tmp_path / "x.pth", archives.state(archives.tensor((0, 5), (5, 1), where=where)), {"0": b""}
    )
    assert read(path)["weight"].numpy().shape == (0, 5)


def test_values_outlive_the_name_of_the_file(tmp_path):
    path = archives.archive(tmp_path / "x.pth", archives.state(archives.tensor()), {"0": FOUR.tobytes()})
    values = read(path)["weight"].numpy()
    path.unlink()
    assert np.array_equal(values, FOUR)
    assert not values.flags.writeable


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\0" * 600, "full of zeros, a failed download"),
        (b"nonsense", "not a torch checkpoint"),
        (b"\n<!DOCTYPE html>", "a web page, not the file; take the download link"),
        (b"\x1f\x8b\x08", "a gzip file; unpack it"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer"),
        (
            b'{\n  "metadata": {}, "weight_map": {}}',
            "JSON, such as a config or the index of several files, not weights",
        ),
        (b"GGUF\3\0\0\0" + b"\1" * 16, "a GGUF file, whose weights are quantized"),
        (b"\0" * 257 + b"ustar" + b"\0" * 300, "a tar file"),
        (pickle.dumps({"a": 1}, protocol=2), "a pickle, but not torch's"),
    ],
)
def test_foreign_file_is_named(tmp_path, content, message):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["layouts", "protocol4", "big_endian"])
@pytest.mark.parametrize("given", ["", "layer", "layer/data.pkl"])
def test_an_unpacked_archive(tmp_path, name, given):
    """As a browser or desktop unpacks a .zip: its folder, a folder around that, or the pickle in it."""
    with zipfile.ZipFile(DATA / f"{name}.pth") as file:
        file.extractall(tmp_path / "unpacked")
    (inner,) = (tmp_path / "unpacked").iterdir()
    inner.rename(inner.parent / "layer")
    expected, found = read(DATA / f"{name}.pth"), read(tmp_path / "unpacked" / given)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key].numpy(), value.numpy()) for key, value in expected.items())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["provenance.json", "config.json"], "a checkpoint of this project already; expected a file"),
        ([".metadata", "__0_0.distcp"], "a sharded checkpoint .*, to be saved as one file first"),
        (["model-00001-of-00002.safetensors", "model.safetensors.index.json"], "weights in several files"),
        (["config.json", "pytorch_model.bin"], "a folder with pytorch_model.bin; expected a file"),
    ],
)
def test_a_folder_of_weights_is_named(tmp_path, names, message):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=message):
        read_checkpoint(tmp_path)


def test_a_folder_that_is_no_archive(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"a folder; expected a file, or an unpacked torch archive"):
        read(tmp_path)
    with zipfile.ZipFile(DATA / "layouts.pth") as file:
        file.extractall(tmp_path)
    (tmp_path / "layouts" / "data" / "0").unlink()
    with pytest.raises(InputError, match="storage 0 is not in the archive"):
        read(tmp_path / "layouts")


def test_no_file_and_no_tensors(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_checkpoint(tmp_path / "absent.pth")
    path = archives.archive(tmp_path / "x.pth", pickle.dumps({"epoch": 1}, protocol=2))
    with pytest.raises(InputError, match="no state_dict with tensors; its top level holds epoch"):
        read(path)


def test_safetensors(tmp_path):
    arrays = {
        "a": FOUR.reshape(2, 2),
        "b": np.zeros((0, 3), np.int64),
        "c": np.array(True),
        "d": np.arange(3, dtype=np.uint8),
    }
    save_file(arrays, tmp_path / "x.safetensors", metadata={"format": "np"})
    tensors = read(tmp_path / "x.safetensors")
    assert tensors.keys() == arrays.keys()
    for key, array in arrays.items():
        assert np.array_equal(tensors[key].numpy(), array)
        assert tensors[key].numpy().dtype == array.dtype


def _safetensors(header: dict | bytes, body: bytes, size: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if size is None else size).to_bytes(8, "little") + raw + body


def _entry(dtype="F32", shape=(4,), offsets=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_safetensors({"w": _entry()}, b"\0" * 15), "not a complete .safetensors file"),
        (_safetensors({"w": _entry()}, b"\0" * 17), "not a complete .safetensors file"),
        (_safetensors({"w": _entry(offsets=(0, 12))}, b"\0" * 12), "not a complete .safetensors file"),
        (_safetensors({"w": _entry(offsets=(-16, 0))}, b""), "not a complete .safetensors file"),
        (_safetensors({"w": _entry(dtype="X9")}, b"\0" * 16), "not a complete .safetensors file"),
        (_safetensors({"w": _entry(dtype="F8_E4M3")}, b"\0" * 4), "not a complete|'w' holds F8_E4M3"),
        (_safetensors({"w": _entry("F8_E4M3", (4,), (0, 4))}, b"\0" * 4), "'w' holds F8_E4M3"),
        (_safetensors({"w": _entry(), "v": _entry()}, b"\0" * 16), "not a complete .safetensors file"),
        (_safetensors({"w": _entry()}, b"\0" * 16, size=2**60), "not a complete .safetensors file"),
        (_safetensors(b"{" * 100_000, b""), "not a complete .safetensors file"),
        (_safetensors(b"[]", b"\0" * 16), "not a torch checkpoint"),
        (b"", "empty"),
    ],
)
def test_safetensors_that_lie(tmp_path, content, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_checkpoint(path)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_ordinary_values_beside_the_weights_are_data(tmp_path, protocol):
    """What training scripts put into their files: kept as records or plain values, never built."""
    values = {
        "range": range(3),
        "zone": datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC),
        "type": type(None),
        "text": np.str_("abc"),
        "bytes": np.bytes_(b"abc"),
        "decimal": decimal.Decimal("1.5"),
        "path": pathlib.PurePosixPath("a/b"),
        "pairs": frozenset([(1, 2), ("a", (3,))]),
        ("a", 1): "tuple",
        np.int64(7): "number",
    }
    data = read_checkpoint(archives.archive(tmp_path / "x.pth", pickle.dumps(values, protocol))).data
    assert (data["range"].name, data["range"].args) == ("builtins.range", (0, 3, 1))
    assert data["zone"].args[1].name == "datetime.timezone"
    assert data["type"].name == "builtins.NoneType"
    assert (data["text"], data["bytes"]) == ("abc", b"abc")
    assert (data["decimal"].name, data["decimal"].args) == ("decimal.Decimal", ("1.5",))
    assert data["path"].name.startswith("pathlib.")
    assert data["pairs"] == {"(1, 2)", "('a', (3,))"}
    assert (data["('a', 1)"], data[7]) == ("tuple", "number")


def test_a_path_of_python_3_13(tmp_path):
    path = b"cpathlib._local\nPosixPath\n(" + archives.text("runs") + b"tR."
    data = read_checkpoint(archives.archive(tmp_path / "x.pth", path)).data
    assert (data.name, data.args) == ("pathlib._local.PosixPath", ("runs",))
