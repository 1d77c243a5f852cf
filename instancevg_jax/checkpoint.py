"""A checkpoint directory that needs nothing else: parameters, configuration, tokenizer, and where it came from.

DIR/params/          every parameter and BatchNorm statistic, by Orbax
DIR/config.json      the run's Config
DIR/tokenizer.spm    the sentencepiece model
DIR/provenance.json  format, version, git commit, size and SHA-256 of the files, and the origin of the parameters
"""

import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from instancevg_jax import config as configs
from instancevg_jax.config import Config, ModelConfig
from instancevg_jax.errors import InputError, first_line
from instancevg_jax.files import check_writable
from instancevg_jax.inputs.tokenizer import Tokenizer
from instancevg_jax.models.instancevg import InstanceVG
from instancevg_jax.models.positions import FIRST_ROWS, PATCHES, POSITIONS, Grid, fit_backbone
from instancevg_jax.runtime.trees import flatten, path_name
from instancevg_jax.runtime.version import __version__, git_commit

FORMAT = "instancevg_jax checkpoint, version 1"
PARAMS, CONFIG, TOKENIZER, PROVENANCE = "params", "config.json", "tokenizer.spm", "provenance.json"
LFS_POINTER = b"version https://git-lfs"
EDITABLE = (CONFIG, "README.md")  # may be changed by the user: neither size nor content is checked


def save_checkpoint(
    directory: str | Path,
    params: nnx.State | Mapping[Any, Any],
    config: Config,
    tokenizer_bytes: bytes,
    provenance: dict[str, Any],
    dtype: str | None = None,
    extra_files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a checkpoint directory, completely or not at all. An earlier checkpoint of that name is replaced.

    Args:
        directory: where to write; its parent is created if needed.
        params: the model's state, as `nnx.state(model)` or as nested dicts; on several hosts, gathered beforehand and
            written by one process.
        config: the run's configuration.
        tokenizer_bytes: the sentencepiece model (`Tokenizer.model_bytes`).
        provenance: JSON values that describe the origin of the parameters; version and git commit are added.
        dtype: "float16" halves the size of the parameters, which are loaded as float32 again. None stores them as they are.
        extra_files: contents of further files by name, such as a README.md.

    Raises:
        InputError: as `check_destination`, a parameter does not fit into float16, or the disk is full.
    """
    directory = Path(directory).absolute()
    check_destination(directory)
    arrays = _cast({name: np.asarray(jax.device_get(value)) for name, value in flatten(params).items()}, dtype)
    _check_space(directory, sum(array.nbytes for array in arrays.values()))
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as temporary:
            new, old = Path(temporary) / "new", Path(temporary) / "old"
            new.mkdir()
            _write_arrays(new / PARAMS, arrays, directory)
            (new / CONFIG).write_text(configs.to_json(config))
            (new / TOKENIZER).write_bytes(tokenizer_bytes)
            for name, content in (extra_files or {}).items():
                (new / name).write_bytes(content)
            stamp = {"format": FORMAT, "version": __version__, "git_commit": git_commit(), "files": _described(new)}
            (new / PROVENANCE).write_text(json.dumps({**provenance, **stamp}, indent=2) + "\n")
            if directory.exists():
                directory.rename(old)
            new.rename(directory)
    except OSError as error:
        raise InputError(f"{directory}: a checkpoint was not written ({first_line(error)})") from error


def check_destination(directory: str | Path) -> None:
    """Raise InputError if a checkpoint cannot be written, or would replace something that is not a checkpoint."""
    directory = Path(directory).absolute()
    check_writable(directory)
    replaceable = directory.is_dir() and (not any(directory.iterdir()) or (directory / PROVENANCE).is_file())
    if directory.exists() and not replaceable:
        raise InputError(f"{directory}: exists and is not a checkpoint; not overwriting it")


def _check_space(directory: Path, needed: int) -> None:
    """Raise InputError if the disk has no room for that many bytes."""
    folder = next(parent for parent in directory.parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        size = f"{needed / 2**20:,.1f} MiB needed, {free / 2**20:,.1f} MiB free"
        raise InputError(f"{directory}: a checkpoint was not written (no space left on device: {size})")


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint directory at a path, as an absolute path.

    Args:
        path: the directory, a file in it, or a run folder, of which `best` is taken, or else `checkpoint`; `~` is expanded.

    Raises:
        InputError: nothing of that name, or a file that is not part of a checkpoint.
    """
    try:
        path = Path(path).expanduser().absolute()
        found = _candidate(path)
        if found is None and not path.is_dir():
            if path.exists():
                raise InputError(f"{path}: a file; expected a checkpoint directory (python -m convert makes one)")
            raise InputError(f"{path}: no such directory; expected a checkpoint ({CONFIG}, {TOKENIZER}, {PARAMS}/)")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except RuntimeError as error:
        raise InputError(f"{path}: the home directory is unknown") from error
    return found or path


def is_checkpoint(path: str | Path) -> bool:
    """Whether `find_checkpoint` finds something that looks like a checkpoint directory, complete or not."""
    try:
        return _candidate(Path(path).expanduser().absolute()) is not None
    except (OSError, RuntimeError):
        return False


def _candidate(path: Path) -> Path | None:
    inside = path.parents[:3] if path.is_file() or path.name == PARAMS else []
    for directory in (path, path / "best", path / "checkpoint", *inside):
        if (directory / PROVENANCE).is_file() or (directory / PARAMS).is_dir():
            return directory
    return None


def load_model(directory: str | Path) -> tuple[InstanceVG, Config]:
    """The model of a checkpoint directory, its parameters as float32, and the Config that it was made with.

    The model is deterministic and does not update its BatchNorm statistics unless it is called with `rngs` or `train=True`.

    Raises:
        InputError: the directory is missing, incomplete or damaged, of an unknown format, or its config.json describes a model
            whose parameters have other names or shapes than the stored ones.
    """
    directory = _checked(directory, PARAMS)
    if _provenance(directory).get("converted_from") == "beit3":
        use = f"train from it (--config.model.pretrained={directory})"
        raise InputError(f"{directory}: holds BEiT-3, the backbone alone, which answers nothing; {use}")
    config = configs.load(directory / CONFIG)
    model = abstract_model(config.model, directory / CONFIG)
    nnx.update(model, _read_arrays(directory, nnx.state(model)))
    return model, config


def abstract_model(config: ModelConfig, source: str | Path) -> InstanceVG:
    """The model with shapes in place of arrays. Raises InputError naming `source` if none can be built."""
    try:
        return nnx.eval_shape(lambda: InstanceVG(config, rngs=nnx.Rngs(0)))
    except (ValueError, TypeError, ArithmeticError) as error:
        raise InputError(f"{source}: no model can be built from it ({error})") from error


def load_pretrained(model: InstanceVG, directory: str | Path) -> None:
    """Start `model` from a checkpoint directory: all of it, or the backbone where the directory was converted from BEiT-3.

    Where `model` takes pictures of another size or patches, the position table and the patch embedding are resized.
    Raises InputError as `load_model` does, and where another parameter has another name or shape than in `model`.
    """
    directory = _checked(directory, PARAMS)
    state = nnx.state(model)
    if _provenance(directory).get("converted_from") == "beit3":
        state = nnx.State({"backbone": state["backbone"]})
    patch = math.isqrt(model.backbone.patch_embed.kernel.shape[0] // 3)
    nnx.update(model, _read_arrays(directory, state, Grid(*model.grid, patch)))


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint directory. Raises InputError as `load_model` does."""
    return Tokenizer.from_file(_checked(directory, TOKENIZER) / TOKENIZER)


def load_provenance(directory: str | Path) -> dict[str, Any]:
    """The content of provenance.json: format, version, git commit, and the origin of the parameters."""
    return _provenance(_checked(directory))


def _cast(arrays: dict[str, np.ndarray], dtype: str | None) -> dict[str, np.ndarray]:
    if dtype is None:
        return arrays
    for name, array in arrays.items():
        if np.abs(array).max(initial=0) > np.finfo(np.float16).max:
            raise InputError(f"parameter {name} holds values beyond float16's range")
    return {name: array.astype(np.float16) for name, array in arrays.items()}


def _described(directory: Path) -> dict[str, dict[str, Any]]:
    """Size and digest of every file that users are not meant to edit."""
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
    """A checkpointer for one process, without barriers between hosts.

    Arrays are written without a copy and without compression: trained weights shrink by 8 % only, and compressing them takes
    longer and needs as much memory again.
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


def _write_arrays(path: Path, arrays: dict[str, np.ndarray], directory: Path) -> None:
    try:
        with _checkpointer() as checkpointer:
            checkpointer.save(path, args=ocp.args.PyTreeSave(arrays))
    except Exception as error:  # Orbax and tensorstore raise many types for a full disk
        raise InputError(f"{directory}: a checkpoint was not written ({first_line(error)})") from error
    # Orbax writes the path that it saved to into this file; a checkpoint is meant to be moved and shared
    (path / "commit_success.txt").write_text("Checkpoint commit was successful\n")


def _read_arrays(directory: Path, abstract: nnx.State, grid: Grid | None = None) -> dict[Any, Any]:
    """The stored arrays as a pure dict of `abstract`'s structure, after a check that names and shapes agree.

    With `grid`, the model's patches, the backbone may be stored for another picture or patch size: it is resized.
    """
    path = directory / PARAMS
    expected = nnx.to_pure_dict(abstract)
    shapes = {name: leaf.shape for name, leaf in flatten(expected).items()}
    stored_grid = Grid.of(configs.load(directory / CONFIG).model) if grid else None
    if stored_grid:
        height, width, patch = stored_grid
        shapes[POSITIONS] = (FIRST_ROWS + height * width, *shapes[POSITIONS][1:])
        shapes[PATCHES] = (3 * patch * patch, *shapes[PATCHES][1:])
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
    if grid and stored_grid:
        arrays |= fit_backbone(arrays, stored_grid, grid)

    def loaded(path: Any, leaf: Any) -> Any:  # jnp.asarray would compile a program per shape
        return jax.device_put(np.asarray(arrays[path_name(path)], leaf.dtype))

    return jax.tree_util.tree_map_with_path(loaded, expected)


def _check_shapes(directory: Path, expected: dict[str, tuple[int, ...]], stored: Mapping[str, Any]) -> None:
    missing, extra = sorted(expected.keys() - stored.keys()), sorted(stored.keys() - expected.keys())
    problem = f"{directory}: {CONFIG} does not fit the parameters"
    if missing:
        raise InputError(f"{problem}: {len(missing)} that it needs are not stored, such as {missing[0]}")
    if extra:
        raise InputError(f"{problem}: {len(extra)} stored ones have no place in it, such as {extra[0]}")
    for name, shape in expected.items():
        if tuple(stored[name].shape) != tuple(shape):
            raise InputError(
                f"{problem}: {name} is stored as {tuple(stored[name].shape)}, the config asks for {tuple(shape)}"
            )


def _checked(directory: str | Path, part: str | None = None) -> Path:
    """`find_checkpoint`, after checking that it is complete, of our format, and that the content of `part` is intact.

    Older checkpoints store sizes but no digests.
    """
    directory = find_checkpoint(directory)
    for needed in (CONFIG, TOKENIZER, PROVENANCE, PARAMS):
        if not (directory / needed).exists():
            raise InputError(f"{directory}: not a whole checkpoint, {needed} is missing")
    for name, entry in _provenance(directory)["files"].items():
        if name not in EDITABLE:
            size, digest = (entry.get("bytes"), entry.get("sha256")) if isinstance(entry, dict) else (entry, None)
            _check_file(directory, name, size, digest if name.split("/")[0] == part else None)
    return directory


def _check_file(directory: Path, name: str, size: Any, digest: str | None) -> None:
    path = directory / name
    try:
        if not path.is_file():
            raise InputError(f"{directory}: not a whole checkpoint, {name} is missing")
        found = path.stat().st_size
        if found != size:
            with path.open("rb") as file:
                pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
            cause = (
                "a git-lfs pointer; run `git lfs pull` where it was cloned" if pointer else "the checkpoint is damaged"
            )
            raise InputError(f"{path}: has {found} bytes, expected {size}; {cause}")
        if digest and _digest(path) != digest:
            raise InputError(
                f"{path}: not the content that was written (its SHA-256 differs); the checkpoint is damaged"
            )
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def _provenance(directory: Path) -> dict[str, Any]:
    try:
        provenance = json.loads((directory / PROVENANCE).read_text("utf-8-sig"))
    except OSError as error:
        raise InputError(f"{directory / PROVENANCE}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{directory / PROVENANCE}: not valid JSON ({error})") from error
    found = provenance.get("format") if isinstance(provenance, dict) else None
    if found != FORMAT or not isinstance(provenance.get("files"), dict):
        raise InputError(f"{directory / PROVENANCE}: the format is {found!r}; expected {FORMAT!r}")
    return provenance
