"""Reads .safetensors files with the library of that name, one tensor at a time."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from instancevg_jax.errors import InputError, first_line

DTYPES = frozenset("F64 F32 F16 BF16 I64 I32 I16 I8 U64 U32 U16 U8 BOOL".split())  # noqa: SIM905


@dataclass(frozen=True)
class SafeTensor:
    """A tensor that stays in its file until its values are needed."""

    path: Path
    name: str
    shape: tuple[int, ...]

    def numpy(self) -> np.ndarray:
        """The values."""
        with safe_open(self.path, framework="np") as file:
            return file.get_tensor(self.name)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        values = self.numpy()
        return values.astype(dtype or values.dtype, copy=False)


def read(path: Path) -> dict[str, SafeTensor]:
    """Every tensor by name. Raises InputError for a damaged file, and for a dtype that numpy lacks."""
    tensors = {}
    try:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                found = file.get_slice(name)
                if found.get_dtype() not in DTYPES:
                    raise InputError(
                        f"{path}: {name[:80]!r} holds {found.get_dtype()}; expected floating point numbers"
                    )
                tensors[name] = SafeTensor(path, name, tuple(found.get_shape()))
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a complete .safetensors file ({first_line(error)})") from error
    return tensors
