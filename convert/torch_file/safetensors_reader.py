"""Reads .safetensors files: a length, a JSON header, then the tensors' bytes, row by row, little-endian.

Source: the format's description in the README of huggingface/safetensors.
"""

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from convert.torch_file.tensor_ref import MAX_DIMENSIONS, Storage, TensorRef
from instancevg_jax.errors import InputError

MAX_HEADER_BYTES = 64 << 20
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


def read(path: Path) -> dict[str, TensorRef]:
    """Every tensor by name. Raises InputError unless header and data fit to the byte."""
    total = path.stat().st_size
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if total < 10 or size > min(total - 8, MAX_HEADER_BYTES):
            raise InputError(f"{path}: a header of {size} bytes in a file of {total}; expected a .safetensors file")
        header = _parse(file.read(size), path)
    tensors = {name: _tensor(path, name, entry, 8 + size) for name, entry in header.items() if name != "__metadata__"}
    end, before = 8 + size, "the header"
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].storage.offset, item[1].nbytes)):
        if tensor.storage.offset != end:
            raise InputError(f"{path}: {name[:80]!r} should follow {before[:80]!r} at byte {end} but is elsewhere")
        end, before = end + tensor.storage.nbytes, name
    if end != total:
        raise InputError(f"{path}: {total} bytes, of which its header describes {end}: truncated or damaged")
    return tensors


def _parse(raw: bytes, path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise InputError(f"{path}: a header that names something twice")
        return dict(pairs)

    try:
        header = json.loads(raw, object_pairs_hook=unique)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: its header is not JSON; expected a .safetensors file") from error
    if not isinstance(header, dict):
        raise InputError(f"{path}: its header is not a JSON object; expected a .safetensors file")
    return header


def _tensor(path: Path, name: str, entry: Any, base: int) -> TensorRef:
    match entry:
        case {"dtype": str() as kind, "shape": list() as shape, "data_offsets": [int() as first, int() as last]}:
            plain = len(shape) <= MAX_DIMENSIONS and all(type(n) is int and 0 <= n < 2**48 for n in shape)
            if kind in DTYPES and plain and 0 <= first <= last:
                dtype = DTYPES[kind]
                if math.prod(shape) * dtype.itemsize == last - first:
                    strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
                    try:
                        storage = Storage(path, last - first, dtype, offset=base + first)
                        return TensorRef(storage, dtype, tuple(shape), strides, 0)
                    except ValueError as error:
                        raise InputError(f"{path}: {name[:80]!r} is {error}") from error
    raise InputError(f"{path}: the header's entry {name[:80]!r} makes no sense; expected dtype, shape and data_offsets")
