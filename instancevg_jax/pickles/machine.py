"""Reads a pickle without importing, calling or building anything in it except the plain values of values.py.

A pickle is a small program for a stack machine. This module runs that program over inert values: a class such as
`argparse.Namespace` becomes an `Inert` record; a function (`os.system`, `builtins.eval`) ends the reading. Work and memory are
bounded, so a hostile file costs no more than a large honest one. Source: CPython's pickletools.
"""

import codecs
import io
import pickletools
import struct
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any, BinaryIO

from instancevg_jax.errors import InputError
from instancevg_jax.pickles.values import PLAIN, Constructor, Inert, Malformed, Name, key, pairs, shown

MAX_OPCODES = 20_000_000  # RefCOCOg's sentences need 8 million, a large model with its optimizer 250,000
MAX_CONTAINERS = 2_000_000
MAX_COPIED_BYTES = 256 << 20
MAX_INT_BITS = 1024
MAX_NESTING = 100
MAX_ITEMS = 50_000_000  # of a tree, shared items counted once per reference

# Any name that is spelled like a class is accepted and recorded as one; these are classes spelled in lower case.
LOWER_CASE_CLASSES = frozenset(
    {
        "numpy.dtype",
        "numpy.ndarray",
        "torch.device",
        *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
        *(f"builtins.{name}" for name in ("object", "range", "slice")),
    }
)
LOWER_CASE_TYPES = frozenset(f"builtins.{name}" for name in ("list", "tuple", "int", "float", "str", "bool"))
# Modules that data never mentions. Their classes would be inert too, but a file that names them is not data.
PROGRAMS = frozenset("os posix nt subprocess commands sys socket importlib ctypes multiprocessing runpy pty".split())  # noqa: SIM905


def load(
    stream: BinaryIO,
    source: str,
    constructors: Mapping[str, Constructor] | None = None,
    names: frozenset[str] = frozenset(),
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """The value of the pickle at `stream`'s position, which is moved to the pickle's end.

    Args:
        stream: the pickle.
        source: names the file in errors.
        constructors: dotted name -> function of the argument tuple that replaces the call, in addition to values.PLAIN.
        names: further names that the pickle may mention without calling them.
        persistent: resolves a reference to something outside the pickle. Like constructors, it raises Malformed for bad arguments.

    Raises:
        InputError: the pickle is damaged, contains anything other than data, or is too large.
    """
    value = _run(_Machine(PLAIN | dict(constructors or {}), LOWER_CASE_TYPES | names, persistent), stream, source)
    _check_nesting(value, source)
    return value


def load_tree(data: bytes, source: str) -> Any:
    """The value of a pickle as a tree that is safe to traverse: without cycles, and bounded in size when written out.

    Raises InputError as `load` does.
    """
    machine = _Machine(PLAIN, LOWER_CASE_TYPES, None)
    value = _run(machine, io.BytesIO(data), source)
    _check_nesting(value, source)
    if machine.shared:
        _check_items(value, source)
    return value


def _run(machine: "_Machine", stream: BinaryIO, source: str) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):  # about odd escapes in strings of Python 2
            return machine.run(stream)
    except Malformed as error:
        raise InputError(f"{source}: {error}; nothing was run") from error
    except (ValueError, struct.error, OverflowError, IndexError) as error:
        raise InputError(f"{source}: not a readable pickle, or a damaged one ({shown(error)})") from error


CONTAINERS = (list, tuple, dict, set, Inert)
_LEAVES = frozenset({str, int, float, bool, type(None)})


def _check_nesting(value: Any, source: str) -> None:
    """Raise InputError for containers nested too deeply. Each container is visited once, breadth first."""
    seen: set[int] = set()
    level = [value]
    for _ in range(MAX_NESTING):
        below = []
        for item in level:
            children = _children(item)
            if not _LEAVES.issuperset(map(type, children)) and id(item) not in seen:
                seen.add(id(item))
                below.extend(child for child in children if isinstance(child, CONTAINERS))
        level = below
        if not level:
            return
    raise InputError(f"{source}: containers nested deeper than {MAX_NESTING} levels; expected plain data")


def _check_items(value: Any, source: str) -> None:
    """Raise InputError for cycles and too many items, counted as a full traversal would meet them. Depth first, each once."""
    sizes = {id(value): 0}  # of containers; 0 while they are open
    path = [[value, iter(_children(value)), 1]]
    while path:
        frame = path[-1]
        for child in frame[1]:
            if not isinstance(child, CONTAINERS):
                frame[2] += 1
            elif id(child) not in sizes:
                sizes[id(child)] = 0
                path.append([child, iter(_children(child)), 1])
                break
            elif sizes[id(child)] == 0:
                raise InputError(f"{source}: a container that contains itself; expected plain data")
            else:
                frame[2] += sizes[id(child)]
        else:
            path.pop()
            sizes[id(frame[0])] = frame[2]
            if path:
                path[-1][2] += frame[2]
        if frame[2] > MAX_ITEMS:
            raise InputError(f"{source}: more than {MAX_ITEMS} items, shared ones counted; expected plain data")


def _children(item: Any) -> Collection[Any]:
    if isinstance(item, dict):
        return item.values()
    if isinstance(item, Inert):
        return (item.args, item.state, item.items)
    return item if isinstance(item, (list, tuple, set)) else ()


class _Machine:
    """The stack machine. Each opcode runs its action, or pushes its argument."""

    def __init__(
        self,
        constructors: Mapping[str, Constructor],
        names: frozenset[str],
        persistent: Callable[[Any], Any] | None,
    ):
        self.constructors = constructors
        self.names = names
        self.persistent = persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each open MARK
        self.memo: dict[int, Any] = {}
        self.shared = False  # whether a container may be in several places, or in itself
        self.copied = 0
        self.containers = 0

    def run(self, stream: BinaryIO) -> Any:
        next_byte, operation_of = stream.read, OPCODES.get
        for _ in range(MAX_OPCODES):
            code = next_byte(1)
            operation = operation_of(code)
            if operation is None:
                if code == b".":
                    return self.pop()
                known = [opcode.name for opcode in pickletools.opcodes if opcode.code.encode("latin-1") == code]
                if known:
                    raise Malformed(f"found the pickle operation {known[0]}, which plain data does not need")
                raise ValueError(f"the operation {code!r} is unknown" if code else "it ends too early")
            read, action = operation
            if action is None:
                self.stack.append(read(stream))  # pyright: ignore[reportOptionalCall]
            elif read is None:
                action(self, None)
            else:
                action(self, read(stream))
        raise Malformed(f"found a pickle of more than {MAX_OPCODES} operations")

    def push(self, value: Any) -> None:
        if isinstance(value, int) and value.bit_length() > MAX_INT_BITS:
            raise Malformed(f"found an integer of {value.bit_length()} bits")
        self.stack.append(value)

    def push_new(self, value: Any) -> None:
        """Push a container."""
        self.count_container()
        self.stack.append(value)

    def count_container(self) -> None:
        self.containers += 1
        if self.containers > MAX_CONTAINERS:
            raise Malformed(f"found more than {MAX_CONTAINERS} containers")

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
        return self.stack[-1] if self.stack else self.pop()

    def mark(self, _: Any) -> None:
        self.count_container()
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
        self.push_new(tuple(reversed([self.pop() for _ in range(size)])))

    def append(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, list):
            raise Malformed(f"found items appended to a {type(target).__name__}")
        target.extend(items)

    def add(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, set):
            raise Malformed(f"found items added to a {type(target).__name__}")
        target.update(key(item) for item in items)

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        target = target.items if isinstance(target, Inert) else target
        if not isinstance(target, dict):
            raise Malformed(f"found key-value pairs set on a {type(target).__name__}")
        target.update(pairs(items))

    def put(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.top()

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise Malformed(f"found a reference to the value {index}, which does not exist")
        value = self.memo[index]
        if type(value) not in _LEAVES:
            self.shared = True
        self.stack.append(value)

    def duplicate(self, _: Any) -> None:
        self.shared = True
        self.stack.append(self.top())

    def name(self, module: Any, name: Any) -> None:
        """The only place where a name enters: a class's becomes a `Name`; any other is refused."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise Malformed("found a name that is not text")
        name = "range" if (module, name) == ("__builtin__", "xrange") else name
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        full = f"{module}.{name}"
        if full not in self.constructors and full not in self.names and not _is_class(full):
            raise Malformed(f"found {shown(full)}, which is not plain data")
        self.push(Name(full))

    def call(self, function: Any, args: Any) -> None:
        if not isinstance(function, Name) or not isinstance(args, tuple):
            raise Malformed(f"found a call of a {type(function).__name__}")
        self.copied += sum(len(arg) for arg in args if isinstance(arg, (str, bytes, bytearray, list, tuple, dict, set)))
        if self.copied > MAX_COPIED_BYTES:
            raise Malformed(f"found calls that copy more than {MAX_COPIED_BYTES} bytes")
        if function.name in self.constructors:
            self.push_new(self.constructors[function.name](args))
        elif _is_class(function.name):
            self.push_new(Inert(function.name, args))
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
        if self.persistent is None:
            raise Malformed("found a reference to something outside the pickle")
        self.push(self.persistent(self.pop()))


def _is_class(name: str) -> bool:
    """Whether a dotted name is spelled like a class and is not of a module that runs programs."""
    module, _, last = name.rpartition(".")
    if name in LOWER_CASE_CLASSES:
        return True
    named = module.replace("_", "a").replace(".", "a").isalnum() and last.isidentifier()
    return named and last.lstrip("_")[:1].isupper() and module.split(".")[0] not in PROGRAMS


def _read_text(stream: BinaryIO) -> str:
    """The argument of STRING, which Python 2 writes: quoted and escaped bytes, decoded as Latin-1."""
    line = stream.readline()
    quoted = line.rstrip(b"\n").strip()
    if not line.endswith(b"\n") or len(quoted) < 2 or quoted[0] != quoted[-1] or quoted[:1] not in (b"'", b'"'):
        raise ValueError("a string without its quotes")
    return codecs.escape_decode(quoted[1:-1])[0].decode("latin-1")  # pyright: ignore[reportAttributeAccessIssue]


def _read_byte(stream: BinaryIO) -> int:
    return stream.read(1)[0]  # IndexError at the end


def _reader_of_int(size: int, signed: bool = False) -> Callable[[BinaryIO], int]:
    """Reads a little-endian integer."""

    def read(stream: BinaryIO) -> int:
        data = stream.read(size)
        if len(data) < size:
            raise ValueError("it ends too early")
        return int.from_bytes(data, "little", signed=signed)

    return read


def _reader_of_text(size: int) -> Callable[[BinaryIO], str]:
    """Reads text in UTF-8 after its length, a number of `size` bytes, as pickletools does in more steps."""

    def read(stream: BinaryIO) -> str:
        length = int.from_bytes(stream.read(size), "little")
        data = stream.read(length)
        if len(data) < length:
            raise ValueError("it ends too early")
        return str(data, "utf-8", "surrogatepass")

    return read


def _read_index(stream: BinaryIO) -> int:
    return int(stream.readline())


_READERS: dict[
    str, Callable[[BinaryIO], Any]
] = {  # in place of those of pickletools: one is missing, the others are faster
    "STRING": _read_text,
    **dict.fromkeys(["BININT1", "BINGET", "BINPUT"], _read_byte),
    **dict.fromkeys(["GET", "PUT"], _read_index),
    **dict.fromkeys(["LONG_BINGET", "LONG_BINPUT"], _reader_of_int(4)),
    "BININT": _reader_of_int(4, signed=True),
    "BININT2": _reader_of_int(2),
    "BINUNICODE": _reader_of_text(4),
    "SHORT_BINUNICODE": _reader_of_text(1),
}
_PUSHES = (
    "BININT BININT1 BININT2 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES "
    "SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8"
)
_ACTIONS: dict[str, Callable[[_Machine, Any], None] | None] = {
    **dict.fromkeys(_PUSHES.split()),
    **dict.fromkeys(["INT", "LONG", "LONG1", "LONG4"], _Machine.push),
    "PROTO": lambda m, arg: None,
    "FRAME": lambda m, arg: None,
    "NONE": lambda m, arg: m.push(None),
    "NEWTRUE": lambda m, arg: m.push(True),
    "NEWFALSE": lambda m, arg: m.push(False),
    "EMPTY_LIST": lambda m, arg: m.push_new([]),
    "EMPTY_DICT": lambda m, arg: m.push_new({}),
    "EMPTY_SET": lambda m, arg: m.push_new(set()),
    "EMPTY_TUPLE": lambda m, arg: m.push(()),
    "MARK": _Machine.mark,
    "POP": _Machine.discard,
    "POP_MARK": _Machine.drop_marked,
    "DUP": _Machine.duplicate,
    "TUPLE": lambda m, arg: m.push(tuple(m.pop_mark())),
    "TUPLE1": lambda m, arg: m.push_tuple(1),
    "TUPLE2": lambda m, arg: m.push_tuple(2),
    "TUPLE3": lambda m, arg: m.push_tuple(3),
    "LIST": lambda m, arg: m.push(m.pop_mark()),
    "DICT": lambda m, arg: m.push(pairs(m.pop_mark())),
    "FROZENSET": lambda m, arg: m.push({key(item) for item in m.pop_mark()}),
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
# opcode -> (reader of its argument, action)
OPCODES: dict[bytes, tuple[Callable[[BinaryIO], Any] | None, Callable[[_Machine, Any], None] | None]] = {
    opcode.code.encode("latin-1"): (
        _READERS.get(opcode.name, opcode.arg.reader if opcode.arg else None),
        _ACTIONS[opcode.name],
    )
    for opcode in pickletools.opcodes
    if opcode.name in _ACTIONS
}
