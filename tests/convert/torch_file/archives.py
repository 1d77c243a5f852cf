"""Small checkpoint files, honest and hostile, written byte by byte for the tests."""

import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"


def archive(path: Path, data_pkl: bytes, storages: dict[str, bytes] | None = None, **extra: bytes) -> Path:
    """torch's zip layout around any pickle. `extra`: more records, `byteorder=b"big"`."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", data_pkl)
        for name, data in {"version": b"3\n", **extra}.items():
            file.writestr(f"a/{name}", data)
        for key, data in (storages or {}).items():
            file.writestr(f"a/data/{key}", data)
    return path


def text(value: str) -> bytes:
    """Opcodes that push a string."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    """Opcodes that push an integer of any size."""
    return b"I%d\n" % value


def numbers(values: tuple[int, ...]) -> bytes:
    """Opcodes that push a tuple of integers."""
    return b"(" + b"".join(number(value) for value in values) + b"t"


def storage(kind: str = "FloatStorage", key: str = "0", count: int = 4) -> bytes:
    """Opcodes that push a reference to a storage."""
    return (
        b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text(key) + text("cpu") + number(count) + b"tQ"
    )


def tensor(shape: tuple[int, ...] = (4,), strides: tuple[int, ...] = (1,), start: int = 0, where: bytes = b"") -> bytes:
    """Opcodes that push a tensor."""
    body = (where or storage()) + number(start) + numbers(shape) + numbers(strides)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + body + b"\x89)tR"


def state(value: bytes) -> bytes:
    """A whole pickle: {"weight": value}."""
    return b"\x80\x02}" + text("weight") + value + b"s."


def call(module: str, name: str, *args: Any) -> bytes:
    """A whole pickle: {"weight": module.name(*args)}."""
    pushed = pickle.dumps(args, protocol=2)[2:-1]
    return state(f"c{module}\n{name}\n".encode() + pushed + b"R")
