"""Plain values for the objects that a pickle describes, and inert records of all others."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

KEY_BITS = 64
KEY_ITEMS = 16  # of a tuple that is a dict's key, nested ones included
KEY_TEXT = 128  # characters of each string in it
MAX_SCALAR_TEXT = 4096
NUMPY_KINDS = frozenset("b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16".split())  # noqa: SIM905


@dataclass(frozen=True)
class Name:
    """The name of a class or function that the file mentions."""

    name: str


@dataclass(eq=False)
class Inert:
    """An object of an unknown class, as the file describes it. It is never built."""

    name: str
    args: tuple[Any, ...]
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict, repr=False)


Constructor = Callable[[tuple[Any, ...]], Any]


class Malformed(Exception):
    """The pickle is invalid; the message says why."""


def shown(value: object) -> str:
    """Text from the file as one short line of printable ASCII."""
    text = ascii(str(value))[1:-1]
    return text if len(text) <= 120 else text[:117] + "..."


def key(value: Any) -> Any:
    """`value` if it may be a dict's key or a set's member: plain and cheap to hash. Raises Malformed otherwise.

    A small tuple becomes its repr: tuples with colliding hashes are easily made, and would make a dict slow.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, tuple):
        return repr(_small(value, KEY_ITEMS))
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (str, bytes, float, bool, type(None))):
        return value
    if isinstance(value, int) and value.bit_length() <= KEY_BITS:
        return value
    raise Malformed(f"found a dict key of type {type(value).__name__}, expected text or a number")


def pairs(items: list[Any]) -> dict[Any, Any]:
    """The dict of alternating keys and values."""
    if len(items) % 2:
        raise Malformed("found a dict with a key that has no value")
    return {
        name if type(name) is str else key(name): value for name, value in zip(items[::2], items[1::2], strict=True)
    }


def _small(value: tuple[Any, ...], room: int) -> tuple[Any, ...]:
    """A tuple of keys with at most `room` items, nested ones included."""
    if len(value) > room:
        raise Malformed(f"found a dict key of type tuple with more than {KEY_ITEMS} items")
    longest = max((len(item) for item in value if isinstance(item, (str, bytes))), default=0)
    if longest > KEY_TEXT:
        raise Malformed(f"found a dict key of type tuple with a text of {longest} characters")
    left = (room - 1) // max(len(value), 1)
    return tuple(_small(item, left) if isinstance(item, tuple) else key(item) for item in value)


def _mapping(args: tuple[Any, ...]) -> dict[Any, Any]:
    match args:
        case ():
            return {}
        case (dict() as items,):
            return dict(items)
        case (list() as listed,) if all(isinstance(p, (list, tuple)) and len(p) == 2 for p in listed):
            return {name if type(name) is str else key(name): value for name, value in listed}
    raise Malformed("found an ordered dict made of something other than pairs")


def _set(args: tuple[Any, ...]) -> set[Any]:
    match args:
        case ():
            return set()
        case (list() | tuple() | set() as items,):
            return {key(item) for item in items}
    raise Malformed("found a set made of something other than a list")


def _bytes(args: tuple[Any, ...]) -> bytes:
    match args:
        case ():
            return b""
        case (bytes() | bytearray() as data,):
            return bytes(data)
        case (str() as text, "latin1" | "latin-1" | "utf-8" | "ascii" as encoding):
            return text.encode(encoding)
    raise Malformed("found bytes made of something other than text")


def _complex(args: tuple[Any, ...]) -> complex:
    match args:
        case (float() | int() as real, float() | int() as imaginary):
            return complex(real, imaginary)
    raise Malformed("found a complex number made of something other than two numbers")


def _deque(args: tuple[Any, ...]) -> list[Any]:
    return list(args[0]) if args and isinstance(args[0], (list, tuple)) else []


def _reconstruct(args: tuple[Any, ...]) -> Inert:
    match args:
        case (Name(name), *rest) if name not in PLAIN:
            return Inert(name, tuple(rest))
    raise Malformed("found an object of an unknown class")


def _numpy_scalar(args: tuple[Any, ...]) -> Any:
    match args:
        case (Inert("numpy.dtype", (str() as kind, *_)) as dtype, bytes() | str() as raw):
            data = raw if isinstance(raw, bytes) else raw.encode("latin-1")  # text in pickles of Python 2
            order = ">" if isinstance(dtype.state, tuple) and ">" in dtype.state[1:2] else "<"
            if kind == f"U{len(data) // 4}" and len(data) % 4 == 0 and len(data) <= MAX_SCALAR_TEXT:
                return data.decode("utf-32-be" if order == ">" else "utf-32-le").rstrip("\0")
            if kind == f"S{len(data)}" and len(data) <= MAX_SCALAR_TEXT:
                return data.rstrip(b"\0")
            if kind in NUMPY_KINDS and np.dtype(kind).itemsize == len(data):
                return np.frombuffer(data, np.dtype(kind).newbyteorder(order))[0]
    raise Malformed("found a numpy scalar of an unknown kind or size")


def _type(args: tuple[Any, ...]) -> Name:
    if args == (None,):
        return Name("builtins.NoneType")
    raise Malformed("found the type of something other than None")


PLAIN: dict[str, Constructor] = {
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "collections.defaultdict": lambda args: _mapping(args[1:]),
    "collections.deque": _deque,
    "builtins.dict": _mapping,
    "builtins.set": _set,
    "builtins.frozenset": _set,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytes,
    "builtins.complex": _complex,
    "builtins.type": _type,
    "_codecs.encode": _bytes,
    "copyreg._reconstructor": _reconstruct,
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
}
