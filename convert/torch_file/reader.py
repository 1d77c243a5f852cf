"""Reads torch's checkpoint files without torch and without running anything they contain.

Both layouts are read: the zip archive (torch 1.6 and later: a pickle `data.pkl` and one record per storage) and the older
sequence of pickles followed by raw storages, as well as unpacked archives and `.safetensors` files. Everything is checked before
the first value is returned, checksums included. Values stay in the file until they are needed.

Source: torch/serialization.py, torch/_utils.py and caffe2/serialize/inline_container.h of PyTorch 2.13 (the layouts only).
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from convert.torch_file import safetensors_reader, zip_index
from convert.torch_file.safetensors_reader import SafeTensor
from convert.torch_file.tensor_ref import Storage, TensorRef
from instancevg_jax.errors import InputError
from instancevg_jax.pickles import machine
from instancevg_jax.pickles.values import Constructor, Inert, Malformed, Name, shown

MAX_PICKLE_BYTES = 64 << 20
MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
EMA_WRAPPERS = ("ema_state_dict", "model_ema")
WRAPPERS = ("state_dict", "model", "module", "model_state_dict", "model_state", "net", "weights", *EMA_WRAPPERS)
MAX_KEY_LENGTH = 512
PICKLE = "data.pkl"

DTYPES = {  # torch's names
    name: np.dtype(getattr(ml_dtypes, name, name))
    for name in (
        *("float64", "float32", "float16", "bfloat16"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
        *("complex128", "complex64", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"),
    )
}
STORAGES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "ComplexDouble": "complex128",
    "ComplexFloat": "complex64",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
}
STORAGE_TYPES: dict[str, np.dtype | None] = {
    f"{module}.{name}Storage": DTYPES[dtype] for module in ("torch", "torch.cuda") for name, dtype in STORAGES.items()
} | {"torch.UntypedStorage": None, "torch.storage.UntypedStorage": None}
TORCH_NAMES = frozenset(
    (
        *STORAGE_TYPES,
        *(f"torch.{name}" for name in DTYPES),
        *("torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"),
    )
)
TENSORS = (TensorRef, SafeTensor)


@dataclass(frozen=True)
class Checkpoint:
    """A file's content: nested dicts and lists, with a TensorRef or SafeTensor per tensor and an Inert per object."""

    path: Path
    layout: str  # "zip", "legacy" or "safetensors"
    data: Any
    checksums: bool  # False: the file has none, so a flipped bit would go unnoticed


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read and check a checkpoint. Raises InputError for anything unexpected."""
    path = Path(path)
    if path.name == PICKLE and (path.parent / "data").is_dir():
        path = path.parent
    try:
        if path.is_dir():
            return _read_folder(path)
        if not path.is_file():
            found = "not a file" if path.exists() else "no such file"
            raise InputError(f"{path}: {found}; expected a torch checkpoint or a .safetensors file")
        with path.open("rb") as file:
            start = file.read(512)
            if start[:4] in (b"PK\3\4", b"PK\5\6"):
                return _read_zip(file, path)
            if start[:1] == b"\x80":
                return _read_legacy(file, path)
        if start[8:9] == b"{":
            return Checkpoint(path, "safetensors", safetensors_reader.read(path), False)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    raise InputError(f"{path}: {_foreign(start)}; expected what torch.save writes, or a .safetensors file")


def _foreign(start: bytes) -> str:
    """What a file that begins like this is, and what to do about it."""
    kinds = {
        b"version https://git-lfs": "a git-lfs pointer, not the file; run `git lfs pull` where it was cloned",
        b"\x1f\x8b": "a gzip file; unpack it",
        b"\x89HDF": "a Keras or HDF5 file",
        b"\x93NUMPY": "a numpy file",
        b"GGUF": "a GGUF file, whose weights are quantized",
    }
    for prefix, kind in kinds.items():
        if start.startswith(prefix):
            return kind
    if start.lstrip()[:1] == b"{":
        return "JSON, such as a config or the index of several files, not weights"
    if start.lstrip()[:1] == b"<":
        return "a web page, not the file; take the download link of that page"
    if start[257:262] == b"ustar":
        return "a tar file; unpack it, or where torch 0.1 wrote it, open and save it with a newer torch"
    if not start.strip(b"\0"):
        return "empty" if not start else "full of zeros, a failed download"
    return "not a torch checkpoint"


def _folder(path: Path) -> str:
    """What a folder that is no unpacked archive is."""
    names = sorted(file.name for file in path.iterdir())
    weights = [name for name in names if name.endswith((".safetensors", ".pth", ".pt", ".bin", ".ckpt"))]
    if "provenance.json" in names:
        return "a checkpoint of this project already"
    if any(name.endswith(".distcp") for name in names):
        return "a sharded checkpoint (torch.distributed.checkpoint), to be saved as one file first"
    if any("-of-" in name for name in weights):
        return "weights in several files, to be saved as one file first"
    return f"a folder with {weights[0]}" if weights else "a folder"


def state_dict(checkpoint: Checkpoint, ema: bool = False) -> dict[str, TensorRef | SafeTensor]:
    """The model's tensors by name, taken out of the usual wrappers.

    With `ema`, the averaged weights (`ema_state_dict`, `model_ema`) instead. Raises InputError if there are none.
    """
    found, wrappers = checkpoint.data, EMA_WRAPPERS if ema else WRAPPERS
    for _ in range(4):
        inner = [found[name] for name in wrappers if isinstance(found, dict) and isinstance(found.get(name), dict)]
        if not inner:
            break
        found, wrappers, ema = inner[0], WRAPPERS, False
    if isinstance(found, Inert):
        raise InputError(
            f"{checkpoint.path}: holds an object of the class {shown(found.name)}; save its state_dict() instead"
        )
    if ema or not isinstance(found, dict) or not any(isinstance(value, TENSORS) for value in found.values()):
        keys = ", ".join(shown(key) for key in list(found)[:8]) if isinstance(found, dict) else type(found).__name__
        raise InputError(f"{checkpoint.path}: no {wrappers[0]} with tensors; its top level holds {keys or 'nothing'}")
    found = {key: value for key, value in found.items() if not str(key).endswith("_extra_state")}  # no weights
    for key, value in found.items():
        if not isinstance(key, str) or not key.isprintable() or len(key) > MAX_KEY_LENGTH:
            raise InputError(f"{checkpoint.path}: the state dict's key {shown(key)} is not a parameter's name")
        if not isinstance(value, TENSORS):
            raise InputError(f"{checkpoint.path}: {key} in the state dict is a {type(value).__name__}, not a tensor")
    return found


def _read_zip(file: BinaryIO, path: Path) -> Checkpoint:
    records = zip_index.read_index(file, str(path))
    pickles = [name for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise InputError(f"{path}: {len(pickles)} records called data.pkl; expected one, as torch.save writes it")
    top = pickles[0].removesuffix("data.pkl")
    foreign = [name for name in records if not name.startswith(top)]
    if foreign or f"{top}constants.pkl" in records or records[pickles[0]].size > MAX_PICKLE_BYTES:
        found = "a TorchScript program" if f"{top}constants.pkl" in records else "other records than torch.save writes"
        raise InputError(f"{path}: {found}; expected a checkpoint of plain tensors")
    checksums = any(record.crc for record in records.values())

    def content(name: str, limit: int) -> bytes:
        file.seek(records[name].offset)
        return file.read(min(records[name].size, limit))

    data = content(pickles[0], MAX_PICKLE_BYTES)
    order = content(f"{top}byteorder", 16) if f"{top}byteorder" in records else b"little"
    places = {
        name.removeprefix(f"{top}data/"): (path, record.offset, record.size)
        for name, record in records.items()
        if name.startswith(f"{top}data/")
    }
    return Checkpoint(path, "zip", _read_pickle(data, order, places, str(path), path.stat().st_size), checksums)


def _read_folder(path: Path) -> Checkpoint:
    """Read an unpacked zip archive: `path` is its folder or the parent of it."""
    roots = [root for root in (path, *sorted(path.iterdir())) if (root / PICKLE).is_file()]
    if len(roots) != 1:
        raise InputError(f"{path}: {_folder(path)}; expected a file, or an unpacked torch archive ({PICKLE}, data/)")
    root = roots[0]
    pickled = root / PICKLE
    if pickled.stat().st_size > MAX_PICKLE_BYTES:
        raise InputError(f"{pickled}: more than {MAX_PICKLE_BYTES} bytes; expected a checkpoint of plain tensors")
    order = root / "byteorder"
    places = {file.name: (file, 0, file.stat().st_size) for file in (root / "data").glob("*") if file.is_file()}
    data = _read_pickle(
        pickled.read_bytes(),
        order.read_bytes() if order.is_file() else b"little",
        places,
        str(path),
        sum(size for *_, size in places.values()),
    )
    return Checkpoint(path, "folder", data, False)


def _read_pickle(data: bytes, order: bytes, places: Mapping[str, tuple[Path, int, int]], source: str, size: int) -> Any:
    """The value of data.pkl. `places`: key -> (file, offset, bytes) of each storage; `size`: total bytes."""
    if order not in (b"little", b"big"):
        raise InputError(f"{source}: the byte order {order[:16]!r}; expected little or big")
    storages: dict[str, Storage] = {}

    def persistent(reference: Any) -> Storage:
        dtype, key, nbytes = _reference(reference)
        if key not in places:
            raise Malformed(f"found a tensor whose storage {shown(key)} is not in the archive")
        file, offset, found = places[key]
        if nbytes != found:
            raise Malformed(f"found a storage {shown(key)} of {nbytes} bytes whose record holds {found}")
        return _shared(storages, key, Storage(file, nbytes, dtype, order == b"big", offset))

    return machine.load(io.BytesIO(data), source, _constructors(size), TORCH_NAMES, persistent)


def _read_legacy(file: BinaryIO, path: Path) -> Checkpoint:
    file.seek(0)
    size = path.stat().st_size
    stream = io.BytesIO(file.read(min(size, MAX_PICKLE_BYTES)))
    storages: dict[str, Storage] = {}

    def persistent(reference: Any) -> Storage:
        view = reference[5] if isinstance(reference, tuple) and len(reference) == 6 else None
        if view is not None:
            raise Malformed("found a view of a storage, as torch before 0.4 wrote them")
        dtype, key, nbytes = _reference(reference[:5] if isinstance(reference, tuple) else reference)
        return _shared(storages, key, Storage(path, nbytes, dtype))

    def load() -> Any:
        return machine.load(stream, str(path), _constructors(size), TORCH_NAMES, persistent)

    if load() != MAGIC:
        raise InputError(f"{path}: a pickle, but not torch's; expected what torch.save writes")
    if load() != PROTOCOL:
        raise InputError(f"{path}: an unknown version of torch's old layout; expected {PROTOCOL}")
    load()  # describes the machine that wrote the file; storages are always little-endian
    data = load()
    keys = load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(storages):
        raise InputError(f"{path}: its list of storages does not match its tensors")
    _place(file, path, stream.tell(), [storages[key] for key in keys])
    return Checkpoint(path, "legacy", data, False)


def _place(file: BinaryIO, path: Path, position: int, storages: list[Storage]) -> None:
    """Set the offset of each storage. They are consecutive, each preceded by its number of elements (8 bytes)."""
    total = path.stat().st_size
    for storage in storages:
        file.seek(position)
        count = int.from_bytes(file.read(8), "little")
        itemsize = storage.dtype.itemsize if storage.dtype else 1
        if count * itemsize != storage.nbytes or position + 8 + storage.nbytes > total:
            raise InputError(
                f"{path}: a storage of {storage.nbytes} bytes whose record announces {count} elements "
                f"{max(total - position - 8, 0)} bytes before the file's end: truncated or damaged"
            )
        storage.offset = position + 8
        position += 8 + storage.nbytes
    if position != total or len(set(map(id, storages))) != len(storages):
        raise InputError(f"{path}: {total - position} bytes after the last storage; expected none")


def _shared(storages: dict[str, Storage], key: str, described: Storage) -> Storage:
    """The storage with this key. Every description of it must be the same."""
    storage = storages.setdefault(key, described)
    if storage.dtype != described.dtype or storage.nbytes != described.nbytes:
        raise Malformed(f"found two descriptions of the storage {shown(key)}")
    return storage


def _reference(reference: Any) -> tuple[np.dtype | None, str, int]:
    """dtype, key and bytes of ("storage", type, key, device, number of elements)."""
    match reference:
        case ("storage", Name(kind), str() as key, str(), int() as count) if (
            kind in STORAGE_TYPES and 0 <= count < 2**56
        ):
            dtype = STORAGE_TYPES[kind]
            return dtype, key, count * (dtype.itemsize if dtype else 1)
        case ("storage", Name(kind), *_) if kind not in STORAGE_TYPES:
            raise Malformed(f"found a tensor's storage of the unknown kind {shown(kind)}")
    raise Malformed("found a reference to something other than a tensor's storage")


def _constructors(file_bytes: int) -> dict[str, Constructor]:
    """The functions that a torch pickle may call. No tensor may be larger than its file."""

    def tensor(args: tuple[Any, ...]) -> TensorRef:
        match args:
            case (Storage() as storage, start, tuple() as shape, tuple() as strides, *rest):
                named = [name.name.removeprefix("torch.") for name in rest if isinstance(name, Name)]
                dtype = DTYPES.get(named[0]) if named and storage.dtype is None else storage.dtype
                if dtype is not None:
                    return _bounded(storage, dtype, shape, strides, start, file_bytes)
        raise Malformed("found a tensor whose description makes no sense")

    def parameter(args: tuple[Any, ...]) -> TensorRef:
        if not args or not isinstance(args[0], TensorRef):
            raise Malformed("found a parameter that is not a tensor")
        return args[0]

    rebuild: dict[str, Callable[[tuple[Any, ...]], TensorRef]] = {
        "torch._utils._rebuild_tensor": tensor,
        "torch._utils._rebuild_tensor_v2": tensor,
        "torch._utils._rebuild_tensor_v3": tensor,
        "torch._utils._rebuild_parameter": parameter,
        "torch._utils._rebuild_parameter_with_state": parameter,
    }

    def typed(args: tuple[Any, ...]) -> TensorRef:
        match args:
            case (Name(name), Name(), tuple() as inner, _) if name in rebuild:
                return rebuild[name](inner)
        raise Malformed("found a tensor of an unknown class")

    return {**rebuild, "torch._tensor._rebuild_from_type_v2": typed}


def _bounded(
    storage: Storage, dtype: np.dtype, shape: tuple[Any, ...], strides: tuple[Any, ...], start: Any, limit: int
) -> TensorRef:
    try:
        result = TensorRef(storage, dtype, shape, strides, start)
    except ValueError as error:
        raise Malformed(f"found {error}") from error
    if result.nbytes > limit:
        raise Malformed(f"found a tensor of {result.nbytes} bytes in a file of {limit}")
    return result
