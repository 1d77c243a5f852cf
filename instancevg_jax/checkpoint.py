"""A checkpoint directory that needs nothing else: parameters, configuration, tokenizer, and where it came from.

DIR/params/          every parameter and BatchNorm statistic, by Orbax
DIR/config.json      the run's Config
DIR/tokenizer.spm    the sentencepiece model
DIR/provenance.json  format, version, git commit, sizes of the files, and what the writer knows of the origin
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx, traverse_util

from instancevg_jax import config as configs
from instancevg_jax.config import Config
from instancevg_jax.errors import InputError, first_line
from instancevg_jax.models.instancevg import InstanceVG
from instancevg_jax.tokenizer import Tokenizer
from instancevg_jax.version import __version__, git_commit

FORMAT = "instancevg_jax checkpoint, version 1"
PARAMS, CONFIG, TOKENIZER, PROVENANCE = "params", "config.json", "tokenizer.spm", "provenance.json"


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
        InputError: `directory` holds something that is no checkpoint, a parameter does not fit into float16, or the
            disk is full.
    """
    directory = Path(directory).absolute()
    if directory.exists() and not (directory.is_dir() and _is_replaceable(directory)):
        raise InputError(f"{directory}: exists and is not a checkpoint; not overwriting it")
    arrays = _cast({name: np.asarray(jax.device_get(value)) for name, value in _flatten(params).items()}, dtype)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        new, old = temporary / "new", temporary / "old"
        new.mkdir()
        _write_arrays(new / PARAMS, arrays)
        (new / CONFIG).write_text(configs.to_json(config))
        (new / TOKENIZER).write_bytes(tokenizer_bytes)
        for name, content in (extra_files or {}).items():
            (new / name).write_bytes(content)
        stamp = {"format": FORMAT, "version": __version__, "git_commit": git_commit(), "files": _sizes(new)}
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
        InputError: the directory is missing or incomplete, of an unknown format, or its config.json describes a model
            whose parameters have other names or shapes than the stored ones.
    """
    directory = _checked(directory)
    config = configs.load(directory / CONFIG)
    try:
        model = nnx.eval_shape(lambda: InstanceVG(config.model, rngs=nnx.Rngs(0)))
    except (ValueError, TypeError, ArithmeticError) as error:
        raise InputError(f"{directory / CONFIG}: no model can be built from it ({error})") from error
    nnx.update(model, _read_arrays(directory, nnx.state(model)))
    return model, config


def load_pretrained(model: InstanceVG, directory: str | Path) -> None:
    """Start `model` from a checkpoint directory: all of it, or the backbone where the directory was converted from BEiT-3.

    Raises InputError as `load_model` does, and where a parameter has another name or shape than in `model`.
    """
    directory = _checked(directory)
    state = nnx.state(model)
    if _provenance(directory).get("converted_from") == "beit3":
        state = nnx.State({"backbone": state["backbone"]})
    nnx.update(model, _read_arrays(directory, state))


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint directory. Raises InputError as `load_model` does."""
    return Tokenizer.from_file(_checked(directory) / TOKENIZER)


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


def _sizes(directory: Path) -> dict[str, int]:
    """Bytes of every file but config.json, which a user may edit."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != CONFIG)
    return {path.relative_to(directory).as_posix(): path.stat().st_size for path in files}


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


def _read_arrays(directory: Path, abstract: nnx.State) -> dict[Any, Any]:
    """The stored arrays as a pure dict of `abstract`'s structure, after a check that names and shapes agree."""
    path = directory / PARAMS
    expected: dict[tuple, Any] = dict(traverse_util.flatten_dict(nnx.to_pure_dict(abstract)))
    try:
        with _checkpointer() as checkpointer:
            stored = checkpointer.metadata(path).item_metadata.tree
            _check_shapes(directory, {".".join(map(str, key)): leaf.shape for key, leaf in expected.items()}, stored)
            how = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in stored}
            arrays = checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=how))
    except InputError:
        raise
    except Exception as error:  # Orbax and tensorstore raise many types for a damaged file
        raise InputError(f"{path}: the parameters cannot be read ({first_line(error)})") from error
    pure = {key: jnp.asarray(arrays[".".join(map(str, key))], leaf.dtype) for key, leaf in expected.items()}
    return traverse_util.unflatten_dict(pure)


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


def _checked(directory: str | Path) -> Path:
    """The directory as an absolute path, if it exists, is whole, and is of our format."""
    directory = Path(directory).absolute()
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory; expected a checkpoint ({CONFIG}, {TOKENIZER}, {PARAMS}/)")
    for part in (CONFIG, TOKENIZER, PROVENANCE, PARAMS):
        if not (directory / part).exists():
            raise InputError(f"{directory}: not a whole checkpoint, {part} is missing")
    for name, size in _provenance(directory)["files"].items():
        path = directory / name
        if not path.is_file():
            raise InputError(f"{directory}: not a whole checkpoint, {name} is missing")
        if path.stat().st_size != size:
            raise InputError(f"{path}: has {path.stat().st_size} bytes, expected {size}; the checkpoint is damaged")
    return directory


def _provenance(directory: Path) -> dict[str, Any]:
    try:
        provenance = json.loads((directory / PROVENANCE).read_text())
    except ValueError as error:
        raise InputError(f"{directory / PROVENANCE}: not valid JSON ({error})") from error
    found = provenance.get("format") if isinstance(provenance, dict) else None
    if found != FORMAT or not isinstance(provenance.get("files"), dict):
        raise InputError(f"{directory / PROVENANCE}: the format is {found!r}; expected {FORMAT!r}")
    return provenance
