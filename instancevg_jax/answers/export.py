"""A model as a program that runs without this package: StableHLO (`jax.export`) with its parameters, its tokenizer and a runner.

The program takes a batch of any size and returns what `postprocess` does, before a score threshold:

    images [B, H, W, 3] float32, normalized RGB     boxes_xyxy [B, Q, 4] float32, pixels of the network's picture
    token_ids [B, L] int32                          scores [B, Q] float32; 0 where a query gives no answer
    token_mask [B, L] bool, True = real token       masks [B, Q, H, W] bool, points_xy [B, Q, 2] float32
                                                    global_mask [B, H, W] bool, no_target_probability [B] float32
"""

import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from safetensors.numpy import save_file

from instancevg_jax.answers.postprocess import postprocess
from instancevg_jax.config import Config
from instancevg_jax.errors import InputError
from instancevg_jax.inputs.pictures import PIXEL_MEAN, PIXEL_STD
from instancevg_jax.models.instancevg import InstanceVG
from instancevg_jax.types import Array

PLATFORMS = ("cpu", "cuda", "tpu")


def inference_fn(model: InstanceVG, config: Config) -> tuple[Callable[..., dict[str, Array]], dict[str, Array]]:
    """(parameters, images, token_ids, token_mask) -> the outputs above, and the parameters by dotted name."""
    graph, state = nnx.split(model)
    paths = {".".join(map(str, path)): path for path in traverse_util.flatten_dict(nnx.to_pure_dict(state))}
    leaves = traverse_util.flatten_dict(nnx.to_pure_dict(state))

    def infer(parameters: dict[str, Array], images: Array, token_ids: Array, token_mask: Array) -> dict[str, Array]:
        tree = traverse_util.unflatten_dict({paths[name]: value for name, value in parameters.items()})
        placed = jax.tree.map(lambda x: x, state)
        nnx.replace_by_pure_dict(placed, tree)
        outputs = nnx.merge(graph, placed)(images, token_ids, token_mask)
        found = postprocess(outputs, config.eval)
        return {
            **{name: getattr(found, name) for name in ("boxes_xyxy", "scores", "masks", "points_xy")},
            "global_mask": jax.nn.sigmoid(outputs.global_mask_logits) >= config.eval.mask_threshold,
            "no_target_probability": found.no_target_probability,
        }

    return infer, {name: leaves[path] for name, path in paths.items()}


def write_stablehlo(
    model: InstanceVG, config: Config, tokenizer: bytes, folder: Path, platforms: tuple[str, ...] = PLATFORMS
) -> None:
    """Write program.stablehlo, parameters.safetensors, settings.json, tokenizer.spm and run.py to `folder`.

    Raises InputError for an unknown platform and for a folder that exists.
    """
    for platform in platforms:
        if platform not in PLATFORMS:
            raise InputError(f"--platforms names {platform!r}; expected some of {', '.join(PLATFORMS)}")
    if importlib.util.find_spec("flatbuffers") is None:
        raise InputError("this export needs flatbuffers; install it with pip install 'instancevg_jax[export]'")
    infer, parameters = inference_fn(model, config)
    (batch,) = jax.export.symbolic_shape("batch")
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), parameters)
    program = jax.export.export(jax.jit(infer), platforms=platforms)(shapes, *_input_shapes(config, batch))
    files: dict[str, bytes | bytearray] = {"program.stablehlo": program.serialize()}
    arrays = {name: np.asarray(value) for name, value in parameters.items()}
    _write_folder(folder, "run_stablehlo.py", config, tokenizer, files, arrays)


def _input_shapes(config: Config, batch: Any) -> tuple[Any, ...]:
    height, width, length = config.model.image_height, config.model.image_width, config.model.max_tokens
    return (
        jax.ShapeDtypeStruct((batch, height, width, 3), jnp.float32),
        jax.ShapeDtypeStruct((batch, length), jnp.int32),
        jax.ShapeDtypeStruct((batch, length), jnp.bool_),
    )


def _write_folder(
    folder: Path,
    runner: str,
    config: Config,
    tokenizer: bytes,
    files: dict[str, bytes | bytearray],
    arrays: dict[str, np.ndarray],
) -> None:
    """All files under a temporary name, then renamed."""
    if folder.exists():
        raise InputError(f"{folder} exists; choose another --output")
    settings = {
        "image_height": config.model.image_height,
        "image_width": config.model.image_width,
        "max_tokens": config.model.max_tokens,
        "pixel_mean": PIXEL_MEAN,
        "pixel_std": PIXEL_STD,
        "score_threshold": config.eval.score_threshold,
        "mask_merge": config.eval.mask_merge,
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        work = Path(temporary) / folder.name
        work.mkdir()
        for name, data in files.items():
            (work / name).write_bytes(data)
        if arrays:
            save_file(arrays, work / "parameters.safetensors")
        (work / "settings.json").write_text(json.dumps(settings, indent=2) + "\n")
        (work / "tokenizer.spm").write_bytes(tokenizer)
        assets = resources.files("instancevg_jax") / "assets" / "runners"
        (work / "run.py").write_text((assets / runner).read_text())
        (work / "inputs.py").write_text((assets / "inputs.py").read_text())
        shutil.move(work, folder)
