"""Reads a pickle as data: nothing in it is imported, called or built except the few plain things listed here.

A pickle is a small program for a stack machine. This module runs that program over inert values: a name such as
`argparse.Namespace` becomes an `Inert` record; a name that is not listed (`os.system`, `builtins.eval`) ends the
reading.
Work and memory are bounded, so a hostile file costs no more than a large honest one. Source: CPython's pickletools.
"""

import pickletools
import struct
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from instancevg_jax.errors import InputError

MAX_OPCODES = 2_000_000  # a large model with all of its optimizer's state needs about 250,000
MAX_COPIED_BYTES = 256 << 20
MAX_INT_BITS = 1024
MAX_NESTING = 100
KEY_BITS = 64
KEY_ITEMS = 16  # of a tuple that is a dict's key, those of tuples in it counted
KEY_TEXT = 128  # characters of each text in it
MAX_SCALAR_TEXT = 4096
NUMPY_KINDS = frozenset("b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16".split())  # noqa: SIM905

# Classes of which a file may hold instances; they stay records of what the file says.
INERT_CLASSES = frozenset(
    {
        "addict.Dict",
        "addict.addict.Dict",
        "argparse.Namespace",
        "builtins.object",
        "builtins.range",
        "builtins.slice",
        "datetime.date",
        "datetime.datetime",
        "datetime.time",
        "datetime.timedelta",
        "datetime.timezone",
        "decimal.Decimal",
        "fractions.Fraction",
        "ml_collections.config_dict.config_dict.ConfigDict",
        "mmcv.utils.config.Config",
        "mmcv.utils.config.ConfigDict",
        "mmengine.config.config.Config",
        "mmengine.config.config.ConfigDict",
        "numpy.dtype",
        "numpy.ndarray",
        "omegaconf.dictconfig.DictConfig",
        *(
            f"{module}.{name}"
            for module in ("pathlib", "pathlib._local")
            for name in ("PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath")
        ),
        "torch.Size",
        "torch.device",
        "types.SimpleNamespace",
    }
)
# Names that a file may mention as values.
INERT_NAMES = frozenset(
    [
        f"builtins.{name}"
        for name in ("list", "dict", "set", "tuple", "int", "float", "str", "bool", "bytes", "NoneType")
    ]
)


@dataclass(frozen=True)
class Name:
    """A class or function that the file mentions; only its name exists here."""

    name: str


@dataclass(eq=False)
class Inert:
    """An object of a known class, as the file describes it; never built."""

    name: str
    args: tuple[Any, ...]
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict, repr=False)


Constructor = Callable[[tuple[Any, ...]], Any]


class Malformed(Exception):
    """The pickle asks for something that makes no sense; the message says what."""


def load(
    stream: BinaryIO,
    source: str,
    constructors: Mapping[str, Constructor],
    names: frozenset[str],
    persistent: Callable[[Any], Any],
) -> Any:
    """The value of the pickle at `stream`'s position, which is moved behind it.

    `constructors` maps dotted names to functions of the argument tuple that stand in for a call, beside the plain ones
    known here; `names` may be mentioned; `persistent` reads the reference to something outside the pickle. They raise
    Malformed for arguments they cannot take. Raises InputError naming `source` for anything else than plain data.
    """
    machine = _Machine(PLAIN | dict(constructors), INERT_NAMES | names, persistent)
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd escapes in old kinds of strings
            value = machine.run(pickletools.genops(stream))
    except Malformed as error:
        raise InputError(f"{source}: {error}; nothing was run") from error
    except (ValueError, struct.error, OverflowError, IndexError) as error:
        raise InputError(f"{source}: not a readable pickle ({shown(error)})") from error
    _check_nesting(value, source)
    return value


def shown(value: object) -> str:
    """Text of the file's making, made fit for one line on a terminal."""
    text = ascii(str(value))[1:-1]
    return text if len(text) <= 120 else text[:117] + "..."


def _check_nesting(value: Any, source: str) -> None:
    """Walk breadth first over all containers, each once; refuse what is nested absurdly deep."""
    seen: set[int] = set()
    level = [value]
    for _ in range(MAX_NESTING):
        below = []
        for item in level:
            if isinstance(item, (list, tuple, dict, set, frozenset, Inert)) and id(item) not in seen:
                seen.add(id(item))
                below.extend(_children(item))
        level = below
        if not level:
            return
    raise InputError(
        f"{source}: containers nested deeper than {MAX_NESTING} levels; expected a checkpoint's plain data"
    )


def _children(item: Any) -> Iterable[Any]:
    if isinstance(item, dict):
        return item.values()
    if isinstance(item, Inert):
        return (item.args, item.state, item.items)
    return item


def _mapping(args: tuple[Any, ...]) -> dict[Any, Any]:
    match args:
        case ():
            return {}
        case (dict() as items,):
            return dict(items)
        case (list() as pairs,) if all(isinstance(p, (list, tuple)) and len(p) == 2 for p in pairs):
            return {_key(key): value for key, value in pairs}
    raise Malformed("found an ordered dict made of something else than pairs")


def _default_dict(args: tuple[Any, ...]) -> dict[Any, Any]:
    return _mapping(args[1:])


def _set(args: tuple[Any, ...]) -> set[Any]:
    match args:
        case ():
            return set()
        case (list() | tuple() | set() as items,):
            return {_key(item) for item in items}
    raise Malformed("found a set made of something else than a list")


def _bytes(args: tuple[Any, ...]) -> bytes:
    match args:
        case ():
            return b""
        case (bytes() | bytearray() as data,):
            return bytes(data)
        case (str() as text, "latin1" | "latin-1" | "utf-8" | "ascii" as encoding):
            return text.encode(encoding)
    raise Malformed("found bytes made of something else than text")


def _complex(args: tuple[Any, ...]) -> complex:
    match args:
        case (float() | int() as real, float() | int() as imaginary):
            return complex(real, imaginary)
    raise Malformed("found a complex number made of something else than two numbers")


def _deque(args: tuple[Any, ...]) -> list[Any]:
    return list(args[0]) if args and isinstance(args[0], (list, tuple)) else []


def _reconstruct(args: tuple[Any, ...]) -> Inert:
    match args:
        case (Name(name), *rest) if name in INERT_CLASSES:
            return Inert(name, tuple(rest))
    raise Malformed("found an object of an unknown class")


def _numpy_scalar(args: tuple[Any, ...]) -> Any:
    match args:
        case (Inert("numpy.dtype", (str() as kind, *_)) as dtype, bytes() as data):
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
    raise Malformed("found the type of something else than None")


PLAIN: dict[str, Constructor] = {
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "collections.defaultdict": _default_dict,
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


def _key(value: Any) -> Any:
    """`value` if it may be a dict's key or a set's member: plain and cheap to hash.

    A small tuple becomes its text: tuples whose hashes collide are easily made, and would make a dict slow.
    """
    if isinstance(value, tuple):
        return repr(_small(value, KEY_ITEMS))
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (str, bytes, float, bool, type(None))):
        return value
    if isinstance(value, int) and value.bit_length() <= KEY_BITS:
        return value
    raise Malformed(f"found a dict key of type {type(value).__name__}, expected text or a number")


def _small(value: tuple[Any, ...], room: int) -> tuple[Any, ...]:
    """A tuple of keys, of at most `room` items with those of its own tuples. Each level leaves less to the next."""
    if len(value) > room:
        raise Malformed(f"found a dict key of type tuple with more than {KEY_ITEMS} items")
    longest = max((len(item) for item in value if isinstance(item, (str, bytes))), default=0)
    if longest > KEY_TEXT:
        raise Malformed(f"found a dict key of type tuple with a text of {longest} characters")
    left = (room - 1) // max(len(value), 1)
    return tuple(_small(item, left) if isinstance(item, tuple) else _key(item) for item in value)


class _Machine:
    """The stack machine. Every opcode has a method, or pushes its argument."""

    def __init__(
        self, constructors: Mapping[str, Constructor], names: frozenset[str], persistent: Callable[[Any], Any]
    ):
        self.constructors = constructors
        self.names = names
        self.persistent = persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each open MARK
        self.memo: dict[int, Any] = {}
        self.copied = 0

    def run(self, opcodes: Iterable[tuple[pickletools.OpcodeInfo, Any, int | None]]) -> Any:
        for count, (opcode, arg, _) in enumerate(opcodes):
            if count >= MAX_OPCODES:
                raise Malformed(f"found a pickle of more than {MAX_OPCODES} operations")
            if opcode.name == "STOP":
                break
            if opcode.name in PUSHES:
                self.push(arg)
                continue
            if opcode.name not in ACTIONS:
                raise Malformed(f"found the pickle operation {opcode.name}, which no checkpoint needs")
            ACTIONS[opcode.name](self, arg)
        return self.pop()

    def push(self, value: Any) -> None:
        if isinstance(value, int) and value.bit_length() > MAX_INT_BITS:
            raise Malformed(f"found an integer of {value.bit_length()} bits")
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack:
            raise Malformed("found a pickle that takes more from its stack than it put there")
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        if not self.below:
            raise Malformed("found a pickle that closes a list it never opened")
        items, self.stack = self.stack, self.below.pop()
        return items

    def top(self) -> Any:
        self.stack.append(self.pop())
        return self.stack[-1]

    def mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def discard(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def drop_marked(self, _: Any) -> None:
        self.pop_mark()

    def push_tuple(self, size: int) -> None:
        self.push(tuple(reversed([self.pop() for _ in range(size)])))

    def append(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, list):
            raise Malformed(f"found items appended to a {type(target).__name__}")
        target.extend(items)

    def add(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, set):
            raise Malformed(f"found items added to a {type(target).__name__}")
        target.update(_key(item) for item in items)

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        target = target.items if isinstance(target, Inert) else target
        if not isinstance(target, dict) or len(items) % 2:
            raise Malformed(f"found key-value pairs set on a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def put(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.top()

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise Malformed(f"found a reference to the value {index}, which does not exist")
        self.push(self.memo[index])

    def name(self, module: Any, name: Any) -> None:
        """The only place where a name enters: listed ones become a record, all others end the reading."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise Malformed("found a name that is not text")
        name = "range" if (module, name) == ("__builtin__", "xrange") else name
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        full = f"{module}.{name}"
        if full not in self.constructors and full not in INERT_CLASSES and full not in self.names:
            raise Malformed(f"found {shown(full)}, which is not plain data")
        self.push(Name(full))

    def call(self, function: Any, args: Any) -> None:
        if not isinstance(function, Name) or not isinstance(args, tuple):
            raise Malformed(f"found a call of a {type(function).__name__}")
        self.copied += sum(len(arg) for arg in args if isinstance(arg, (str, bytes, bytearray, list, tuple, dict, set)))
        if self.copied > MAX_COPIED_BYTES:
            raise Malformed(f"found calls that copy more than {MAX_COPIED_BYTES} bytes")
        if function.name in self.constructors:
            self.push(self.constructors[function.name](args))
        elif function.name in INERT_CLASSES:
            self.push(Inert(function.name, args))
        else:
            raise Malformed(f"found a call of {function.name}, which is not plain data")

    def reduce(self, _: Any) -> None:
        args = self.pop()
        self.call(self.pop(), args)

    def reduce_keywords(self, _: Any) -> None:
        keywords, args = self.pop(), self.pop()
        self.call(self.pop(), args)
        self.build(keywords)

    def instance(self, items: list[Any]) -> None:
        self.call(items[0] if items else None, tuple(items[1:]))

    def old_instance(self, arg: str) -> None:
        items = self.pop_mark()
        self.name(*arg.split(" ", 1))
        self.call(self.pop(), tuple(items))

    def build(self, state: Any) -> None:
        target = self.top()
        if isinstance(target, Inert):
            target.state = state

    def persistent_id(self, _: Any) -> None:
        self.push(self.persistent(self.pop()))


def _pairs(items: list[Any]) -> dict[Any, Any]:
    if len(items) % 2:
        raise Malformed("found a dict with a key that has no value")
    return {_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


PUSHES = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES "  # noqa: SIM905
    "SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8".split()
)
ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda m, arg: None,
    "FRAME": lambda m, arg: None,
    "NONE": lambda m, arg: m.push(None),
    "NEWTRUE": lambda m, arg: m.push(True),
    "NEWFALSE": lambda m, arg: m.push(False),
    "EMPTY_LIST": lambda m, arg: m.push([]),
    "EMPTY_DICT": lambda m, arg: m.push({}),
    "EMPTY_SET": lambda m, arg: m.push(set()),
    "EMPTY_TUPLE": lambda m, arg: m.push(()),
    "MARK": _Machine.mark,
    "POP": _Machine.discard,
    "POP_MARK": _Machine.drop_marked,
    "DUP": lambda m, arg: m.push(m.top()),
    "TUPLE": lambda m, arg: m.push(tuple(m.pop_mark())),
    "TUPLE1": lambda m, arg: m.push_tuple(1),
    "TUPLE2": lambda m, arg: m.push_tuple(2),
    "TUPLE3": lambda m, arg: m.push_tuple(3),
    "LIST": lambda m, arg: m.push(list(m.pop_mark())),
    "DICT": lambda m, arg: m.push(_pairs(m.pop_mark())),
    "FROZENSET": lambda m, arg: m.push({_key(item) for item in m.pop_mark()}),
    "APPEND": lambda m, arg: m.append([m.pop()]),
    "APPENDS": lambda m, arg: m.append(m.pop_mark()),
    "ADDITEMS": lambda m, arg: m.add(m.pop_mark()),
    "SETITEM": lambda m, arg: m.set_items(list(reversed([m.pop(), m.pop()]))),
    "SETITEMS": lambda m, arg: m.set_items(m.pop_mark()),
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "GLOBAL": lambda m, arg: m.name(*arg.split(" ", 1)),
    "STACK_GLOBAL": lambda m, arg: m.name(*reversed([m.pop(), m.pop()])),
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.reduce,
    "NEWOBJ_EX": _Machine.reduce_keywords,
    "OBJ": lambda m, arg: m.instance(m.pop_mark()),
    "INST": _Machine.old_instance,
    "BUILD": lambda m, arg: m.build(m.pop()),
    "BINPERSID": _Machine.persistent_id,
}
