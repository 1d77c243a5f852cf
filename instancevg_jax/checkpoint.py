"""A checkpoint directory that needs nothing else: parameters, configuration, tokenizer, and where it came from.

DIR/params/          every parameter and BatchNorm statistic, by Orbax
DIR/config.json      the run's Config
DIR/tokenizer.spm    the sentencepiece model
DIR/provenance.json  format, version, git commit, size and SHA-256 of the files, and what the writer knows of the origin
"""

import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx, traverse_util

from instancevg_jax import config as configs
from instancevg_jax.config import Config
from instancevg_jax.errors import InputError, first_line
from instancevg_jax.files import check_writable
from instancevg_jax.inputs.tokenizer import Tokenizer
from instancevg_jax.models.instancevg import InstanceVG
from instancevg_jax.models.positions import FIRST_ROWS, resize_bicubic, resize_positions
from instancevg_jax.runtime.version import __version__, git_commit

FORMAT = "instancevg_jax checkpoint, version 1"
PARAMS, CONFIG, TOKENIZER, PROVENANCE = "params", "config.json", "tokenizer.spm", "provenance.json"
EDITABLE = (CONFIG, "README.md")  # what a user may change: neither size nor content is held
POSITIONS, PATCHES = "backbone.vision_positions", "backbone.patch_embed.kernel"


class _Sizes(NamedTuple):
    """What the stored parameters are for: pictures of height x width patches, and a patch's side in pixels."""

    height: int
    width: int
    patch: int


def save_checkpoint(
    directory: str | Path,
    params: nnx.State | Mapping[Any, Any],
    config: Config,
    tokenizer_bytes: bytes,
    provenance: dict[str, Any],
    dtype: str | None = None,
    extra_files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a checkpoint directory, whole or not at all. An earlier checkpoint of that name is replaced.

    Args:
        directory: where to; its parent is made if need be.
        params: the model's whole state, as `nnx.state(model)` or as nested dicts; on several hosts, gathered beforehand
            and written by one process.
        config: the run's configuration.
        tokenizer_bytes: the sentencepiece model (`Tokenizer.model_bytes`).
        provenance: JSON values that tell where the parameters come from; version and git commit are added here.
        dtype: store parameters as "float16" (they are loaded as float32 again); None stores them as they are.
        extra_files: contents of further files by name, such as a README.md.

    Raises:
        InputError: as `check_destination`, a parameter does not fit into float16, or the disk is full.
    """
    directory = Path(directory).absolute()
    check_destination(directory)
    arrays = _cast({name: np.asarray(jax.device_get(value)) for name, value in _flatten(params).items()}, dtype)
    try:
        _write(directory, arrays, config, tokenizer_bytes, provenance, extra_files or {})
    except OSError as error:
        raise InputError(f"{directory}: a checkpoint was not written ({first_line(error)})") from error


def check_destination(directory: str | Path) -> None:
    """Raise InputError where a checkpoint cannot be written: over something that is no checkpoint, or where nothing can be."""
    directory = Path(directory).absolute()
    check_writable(directory)
    if directory.exists() and not (directory.is_dir() and _is_replaceable(directory)):
        raise InputError(f"{directory}: exists and is not a checkpoint; not overwriting it")


def _write(
    directory: Path,
    arrays: dict[str, np.ndarray],
    config: Config,
    tokenizer_bytes: bytes,
    provenance: dict[str, Any],
    extra_files: Mapping[str, bytes],
) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        new, old = temporary / "new", temporary / "old"
        new.mkdir()
        _write_arrays(new / PARAMS, arrays)
        (new / CONFIG).write_text(configs.to_json(config))
        (new / TOKENIZER).write_bytes(tokenizer_bytes)
        for name, content in extra_files.items():
            (new / name).write_bytes(content)
        stamp = {"format": FORMAT, "version": __version__, "git_commit": git_commit(), "files": _described(new)}
        (new / PROVENANCE).write_text(json.dumps({**provenance, **stamp}, indent=2) + "\n")
        if directory.exists():
            directory.rename(old)
        new.rename(directory)
    finally:
        shutil.rmtree(temporary)


def load_model(directory: str | Path) -> tuple[InstanceVG, Config]:
    """The model of a checkpoint directory, its parameters as float32, and the Config that it was made with.

    The model answers deterministically and leaves its BatchNorm statistics alone unless called otherwise.

    Raises:
        InputError: the directory is missing, incomplete or damaged, of an unknown format, or its config.json describes a model
            whose parameters have other names or shapes than the stored ones.
    """
    directory = _checked(directory, PARAMS)
    config = configs.load(directory / CONFIG)
    try:
        model = nnx.eval_shape(lambda: InstanceVG(config.model, rngs=nnx.Rngs(0)))
    except (ValueError, TypeError, ArithmeticError) as error:
        raise InputError(f"{directory / CONFIG}: no model can be built from it ({error})") from error
    nnx.update(model, _read_arrays(directory, nnx.state(model)))
    return model, config


def load_pretrained(model: InstanceVG, directory: str | Path) -> None:
    """Start `model` from a checkpoint directory: all of it, or the backbone where the directory was converted from BEiT-3.

    Where `model` takes pictures of another size or patches, the position table and the patch embedding are resized.
    Raises InputError as `load_model` does, and where another parameter has another name or shape than in `model`.
    """
    directory = _checked(directory, PARAMS)
    state = nnx.state(model)
    if _provenance(directory).get("converted_from") == "beit3":
        state = nnx.State({"backbone": state["backbone"]})
    nnx.update(model, _read_arrays(directory, state, model.grid))


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint directory. Raises InputError as `load_model` does."""
    return Tokenizer.from_file(_checked(directory, TOKENIZER) / TOKENIZER)


def load_provenance(directory: str | Path) -> dict[str, Any]:
    """What provenance.json says: format, version, git commit, and where the parameters come from."""
    return _provenance(_checked(directory))


def _is_replaceable(directory: Path) -> bool:
    return not any(directory.iterdir()) or (directory / PROVENANCE).is_file()


def _flatten(params: nnx.State | Mapping[Any, Any]) -> dict[str, Any]:
    """Leaves by dotted name: "backbone.blocks.0.text.fc1.kernel"."""
    pure = nnx.to_pure_dict(params) if isinstance(params, nnx.State) else params
    return {".".join(map(str, path)): leaf for path, leaf in traverse_util.flatten_dict(pure).items()}


def _cast(arrays: dict[str, np.ndarray], dtype: str | None) -> dict[str, np.ndarray]:
    if dtype is None:
        return arrays
    if dtype != "float16":
        raise InputError(f"dtype is {dtype!r}; expected 'float16' or None")
    for name, array in arrays.items():
        if np.abs(array).max(initial=0) > np.finfo(np.float16).max:
            raise InputError(f"parameter {name} holds values beyond float16's range")
    return {name: array.astype(np.float16) for name, array in arrays.items()}


def _described(directory: Path) -> dict[str, dict[str, Any]]:
    """Size and digest of every file that nobody is meant to edit."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    names = {path.relative_to(directory).as_posix(): path for path in files}
    return {
        name: {"bytes": path.stat().st_size, "sha256": _digest(path)}
        for name, path in names.items()
        if name not in EDITABLE
    }


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checkpointer() -> ocp.Checkpointer:
    """One process reads or writes by itself: no barrier with the other hosts.

    Arrays are written from where they lie, without a copy and without compression: trained weights shrink by 8 % only, and
    compressing them takes longer and as much memory again.
    """
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()}, barrier_sync_key_prefix="checkpoint"
    )
    types = ocp.type_handlers
    registry = types.create_type_handler_registry(
        (np.ndarray, types.NumpyHandler(deepcopy_host_arrays=False)), (jax.Array, types.ArrayHandler())
    )
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=True,
        use_compression=False,
        multiprocessing_options=alone,
        type_handler_registry=registry,
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    try:
        with _checkpointer() as checkpointer:
            checkpointer.save(path, args=ocp.args.PyTreeSave(arrays))
    except Exception as error:  # Orbax and tensorstore raise many types for a full disk
        raise InputError(f"{path.parent.parent.parent}: a checkpoint was not written ({first_line(error)})") from error
    # Orbax writes the path that it saved to into this file; a checkpoint is meant to be moved and shared
    (path / "commit_success.txt").write_text("Checkpoint commit was successful\n")


def _read_arrays(directory: Path, abstract: nnx.State, grid: tuple[int, int] | None = None) -> dict[Any, Any]:
    """The stored arrays as a pure dict of `abstract`'s structure, after a check that names and shapes agree.

    With `grid`, the model's patches (h, w), the backbone may be stored for another picture size: it is resized.
    """
    path = directory / PARAMS
    expected: dict[tuple, Any] = dict(traverse_util.flatten_dict(nnx.to_pure_dict(abstract)))
    shapes: dict[str, tuple[int, ...]] = {".".join(map(str, key)): leaf.shape for key, leaf in expected.items()}
    fitted = {name: shapes[name] for name in (POSITIONS, PATCHES)}
    old = _stored_sizes(directory) if grid else None
    if old:
        shapes[POSITIONS] = (FIRST_ROWS + old.height * old.width, *fitted[POSITIONS][1:])
        shapes[PATCHES] = (3 * old.patch * old.patch, *fitted[PATCHES][1:])
    try:
        with _checkpointer() as checkpointer:
            stored = checkpointer.metadata(path).item_metadata.tree
            _check_shapes(directory, shapes, stored)
            how = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in stored}
            arrays = checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=how))
    except InputError:
        raise
    except Exception as error:  # Orbax and tensorstore raise many types for a damaged file
        raise InputError(f"{path}: the parameters cannot be read ({first_line(error)})") from error
    if old and grid:
        arrays[POSITIONS] = _fit_positions(arrays[POSITIONS], (old.height, old.width), grid)
        arrays[PATCHES] = _fit_patches(arrays[PATCHES], old.patch, math.isqrt(fitted[PATCHES][0] // 3))
    pure = {key: jnp.asarray(arrays[".".join(map(str, key))], leaf.dtype) for key, leaf in expected.items()}
    return traverse_util.unflatten_dict(pure)


def _stored_sizes(directory: Path) -> _Sizes:
    model = configs.load(directory / CONFIG).model
    patch = model.patch_size
    if not 0 < patch <= min(model.image_height, model.image_width):
        raise InputError(f"{directory / CONFIG}: model.patch_size is {patch}; expected 1 to the picture's side")
    return _Sizes(model.image_height // patch, model.image_width // patch, patch)


def _fit_positions(table: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    return table if old == new else resize_positions(table.astype(np.float32), old, new)


def _fit_patches(kernel: np.ndarray, old: int, new: int) -> np.ndarray:
    """[old * old * 3, D] -> [new * new * 3, D]; rows in the order y, x, channel."""
    if old == new:
        return kernel
    squares = kernel.astype(np.float32).reshape(old, old, -1).transpose(2, 0, 1)
    return resize_bicubic(squares, (new, new)).transpose(1, 2, 0).reshape(new * new * 3, -1)


def _check_shapes(directory: Path, expected: dict[str, tuple[int, ...]], stored: Mapping[str, Any]) -> None:
    missing, extra = sorted(expected.keys() - stored.keys()), sorted(stored.keys() - expected.keys())
    told = f"{directory}: {CONFIG} does not fit the parameters"
    if missing:
        raise InputError(f"{told}: {len(missing)} that it asks for are not stored, such as {missing[0]}")
    if extra:
        raise InputError(f"{told}: {len(extra)} stored ones have no place in it, such as {extra[0]}")
    for name, shape in expected.items():
        if tuple(stored[name].shape) != tuple(shape):
            raise InputError(
                f"{told}: {name} is stored as {tuple(stored[name].shape)}, the config asks for {tuple(shape)}"
            )


def _checked(directory: str | Path, part: str | None = None) -> Path:
    """The directory as an absolute path, if it exists, is whole, of our format, and the content of `part` is what was written.

    Checkpoints of before digests were kept hold sizes alone.
    """
    directory = Path(directory).absolute()
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory; expected a checkpoint ({CONFIG}, {TOKENIZER}, {PARAMS}/)")
    for needed in (CONFIG, TOKENIZER, PROVENANCE, PARAMS):
        if not (directory / needed).exists():
            raise InputError(f"{directory}: not a whole checkpoint, {needed} is missing")
    for name, entry in _provenance(directory)["files"].items():
        if name in EDITABLE:
            continue
        path = directory / name
        size, digest = (entry.get("bytes"), entry.get("sha256")) if isinstance(entry, dict) else (entry, None)
        if not path.is_file():
            raise InputError(f"{directory}: not a whole checkpoint, {name} is missing")
        if path.stat().st_size != size:
            raise InputError(f"{path}: has {path.stat().st_size} bytes, expected {size}; the checkpoint is damaged")
        if digest and name.split("/")[0] == part and _digest(path) != digest:
            raise InputError(
                f"{path}: not the content that was written (its SHA-256 differs); the checkpoint is damaged"
            )
    return directory


def _provenance(directory: Path) -> dict[str, Any]:
    try:
        provenance = json.loads((directory / PROVENANCE).read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{directory / PROVENANCE}: not valid JSON ({error})") from error
    found = provenance.get("format") if isinstance(provenance, dict) else None
    if found != FORMAT or not isinstance(provenance.get("files"), dict):
        raise InputError(f"{directory / PROVENANCE}: the format is {found!r}; expected {FORMAT!r}")
    return provenance
