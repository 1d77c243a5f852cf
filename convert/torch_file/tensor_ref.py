"""Tensors that stay in their file and are memory-mapped when their values are needed."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MAX_DIMENSIONS = 32


@dataclass(eq=False)
class Storage:
    """A contiguous block of elements in a file. Several tensors may share it."""

    path: Path
    nbytes: int
    dtype: np.dtype | None  # None: untyped bytes; the tensor has the dtype
    swapped: bool = False  # big-endian
    offset: int = 0  # bytes from the start of the file


@dataclass(frozen=True, eq=False)
class TensorRef:
    """A strided view of a storage. `strides` and `start` count elements, as in torch."""

    storage: Storage
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int

    def __post_init__(self):
        """Raise ValueError unless every element lies inside the storage."""
        numbers = (*self.shape, *self.strides, self.start)
        if not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
            raise ValueError(f"a tensor with sizes, strides or an offset out of range {_short(numbers)}")
        if len(self.shape) != len(self.strides) or len(self.shape) > MAX_DIMENSIONS:
            raise ValueError(f"a tensor with {len(self.shape)} sizes and {len(self.strides)} strides")
        if self.size and (self.start + self.extent) * self.dtype.itemsize > self.storage.nbytes:
            raise ValueError(f"a tensor of shape {_short(self.shape)} that reaches beyond its storage's end")
        if not self.size and math.prod(n for n in self.shape if n) >= 2**48:
            raise ValueError(f"an empty tensor of the shape {_short(self.shape)}")

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of a contiguous copy."""
        return self.size * self.dtype.itemsize

    @property
    def extent(self) -> int:
        """Number of storage elements from the tensor's first to its last, both included."""
        return 1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))

    def numpy(self) -> np.ndarray:
        """The values: a read-only view of the memory-mapped file; a copy for big-endian values and booleans."""
        if not self.size:
            return np.zeros(self.shape, self.dtype)
        offset = self.storage.offset + self.start * self.dtype.itemsize
        raw = np.memmap(self.storage.path, np.uint8, "r", offset, (self.extent * self.dtype.itemsize,))
        strides = tuple(stride * self.dtype.itemsize for stride in self.strides)
        values = np.ndarray(self.shape, self.dtype, raw, strides=strides)
        if self.dtype == bool:
            return values.view(np.uint8) != 0
        if self.storage.swapped and self.dtype.itemsize > 1:
            return _byteswap(values)
        return values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        values = self.numpy()
        return np.array(values, dtype, copy=copy) if copy else values.astype(dtype or values.dtype, copy=False)


def _byteswap(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind in "biufc":
        return values.byteswap()
    return values.view(f"u{values.dtype.itemsize}").byteswap().view(values.dtype)  # ml_dtypes has dtypes of its own


def _short(numbers: tuple[Any, ...]) -> str:
    text = ", ".join(str(n) if type(n) is int and abs(n) < 2**64 else type(n).__name__ for n in numbers[:8])
    return f"({text}{', ...' if len(numbers) > 8 else ''})"
