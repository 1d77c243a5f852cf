"""Writes a state dict as a `.pth` file in torch's zip layout without torch; `torch.load(weights_only=True)` reads it.

Source: the layout of torch/serialization.py and caffe2/serialize/inline_container.cc of PyTorch 2.13: a pickle of names,
shapes and references, and one uncompressed record per storage, aligned to 64 bytes so that it can be memory-mapped.
"""

import math
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from convert.torch_file.reader import DTYPES, STORAGES
from instancevg_jax.errors import InputError
from instancevg_jax.files import atomic_file, check_writable

ALIGNMENT = 64
PADDING_ID = b"FB"  # of the extra field with which torch pads
LOCAL_HEADER = 30
KINDS = {DTYPES[dtype]: f"{name}Storage" for name, dtype in STORAGES.items()}


def write_checkpoint(path: str | Path, state: Mapping[str, np.ndarray], wrapper: str = "state_dict") -> None:
    """Write {wrapper: OrderedDict(state)} to `path`, completely or not at all.

    Arrays that are the same object share their storage, as a shared module does in torch. One tensor at a time is copied.
    Raises InputError if the file cannot be written, or an array has a dtype that torch's storages lack.
    """
    check_destination(path)
    storages = {id(array): (str(i), array) for i, array in enumerate({id(a): a for a in state.values()}.values())}
    try:
        with atomic_file(path) as raw, zipfile.ZipFile(raw, "w") as file:
            _add(file, "data.pkl", _pickle(state, {key: name for key, (name, _) in storages.items()}, wrapper))
            _add(file, "byteorder", b"little")
            for name, array in storages.values():
                _add(file, f"data/{name}", _bytes(array))
            _add(file, "version", b"3\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error


def check_destination(path: str | Path) -> None:
    """Raise InputError where `write_checkpoint` could not write."""
    path = Path(path)
    check_writable(path)
    if not path.parent.is_dir():
        raise InputError(f"{path.parent}: no such directory; expected one to write {path.name} into")
    if path.is_dir():
        raise InputError(f"{path}: is a directory; expected a file name such as model.pth")


def _bytes(array: np.ndarray) -> memoryview:
    """The values in row-major order, little-endian."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<") if array.dtype.kind in "biufc" else None)
    return little.reshape(-1).view(np.uint8).data


def _add(file: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    """Add an uncompressed record whose data begins at a multiple of ALIGNMENT."""
    info = zipfile.ZipInfo(f"archive/{name}")
    info.file_size = len(data)
    assert file.fp is not None
    start = file.fp.tell() + LOCAL_HEADER + len(info.filename) + 4
    padding = -start % ALIGNMENT
    info.extra = PADDING_ID + struct.pack("<H", padding) + b"Z" * padding
    with file.open(info, "w") as record:
        record.write(data)


def _pickle(state: Mapping[str, np.ndarray], storages: Mapping[int, str], wrapper: str) -> bytes:
    """{wrapper: OrderedDict of tensors} as a pickle of protocol 2."""
    items = b"".join(_text(key) + _tensor(key, array, storages[id(array)]) for key, array in state.items())
    return b"\x80\x02}" + _text(wrapper) + _ORDERED_DICT + b"(" + items + b"us."


_ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def _tensor(key: str, array: np.ndarray, storage: str) -> bytes:
    if array.dtype.newbyteorder("=") not in KINDS:
        raise InputError(f"{key} has dtype {array.dtype}, which torch has no storage for")
    kind = KINDS[array.dtype.newbyteorder("=")].encode()
    reference = _text("storage") + b"ctorch\n" + kind + b"\n" + _text(storage) + _text("cpu") + _number(array.size)
    strides = tuple(math.prod(array.shape[i + 1 :]) for i in range(array.ndim))
    body = b"(" + reference + b"tQ" + _number(0) + _numbers(array.shape) + _numbers(strides) + b"\x89" + _ORDERED_DICT
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + body + b"tR"


def _text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _number(value: int) -> bytes:
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def _numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(_number(value) for value in values) + b"t"
