"""Our parameters -> the original's complete state dict, including tensors that the original has and never uses."""

import dataclasses
import functools
import io
import zipfile
import zlib
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from convert.instancevg import TABLE
from convert.rules import to_source
from instancevg_jax.checkpoint import abstract_model, find_checkpoint, load_model
from instancevg_jax.config import Config, ModelConfig
from instancevg_jax.errors import InputError, first_line
from instancevg_jax.runtime.trees import flatten

LEFT_OUT_FILE = "original_only.npz"  # in a converted directory: the original's tensors that our model lacks


def expected_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter and statistic of the model, by name."""
    return dict(_shapes(dataclasses.astuple(config.model)))


@functools.lru_cache(4)
def _shapes(settings: tuple) -> dict[str, tuple[int, ...]]:
    model = abstract_model(ModelConfig(*settings), "the config")
    return {name: leaf.shape for name, leaf in flatten(nnx.state(model)).items()}


def unused_tensors(config: Config) -> dict[str, np.ndarray]:
    """The original's tensors that our model lacks, at neutral values: zeros, and the loss's class weights.

    Source: the original's models/heads/uni_gref_deformable_head.py and its parts. Nothing reads them in evaluation.
    """
    model = config.model
    width, head = model.width, model.head_width
    shapes = {
        "vis_enc.beit3.vision_embed.mask_token": (1, 1, width),
        "head.query_embedding.weight": (head, width),
        "head.proj_pixel_level_cons.vis.weight": (head // 2, head, 1, 1),
        "head.proj_pixel_level_cons.vis.bias": (head // 2,),
        "head.proj_pixel_level_cons.txt.weight": (head // 2 + 1, head),
        "head.proj_pixel_level_cons.txt.bias": (head // 2 + 1,),
        "head.query_generation.query_embed.weight": (model.num_queries, head),
        "head.decoder_transformer.level_embeds": (4, head),
    }
    tensors: dict[str, np.ndarray] = {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}
    tensors["head.detrloss.criterion.empty_weight"] = np.array([1, config.loss.no_object_weight], np.float32)
    for i in (1, 2):
        for level in (2, 3, 4):
            tensors[f"head.unet_decoder.bn{i}_{level}.num_batches_tracked"] = np.array(0, np.int64)
    return tensors


def pack(tensors: dict[str, np.ndarray]) -> bytes:
    """The content of LEFT_OUT_FILE."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{key: np.asarray(value) for key, value in tensors.items()})
    return buffer.getvalue()


def original_state(directory: str | Path) -> tuple[dict[str, np.ndarray], int]:
    """A checkpoint directory's parameters as the original's state dict, and how many tensors came from LEFT_OUT_FILE.

    Tensors that the file lacks (the model was trained here) have the values of `unused_tensors`. Raises InputError for an
    incomplete checkpoint directory.
    """
    directory = find_checkpoint(directory)
    model, config = load_model(directory)
    params = {path: np.asarray(jax.device_get(leaf)) for path, leaf in flatten(nnx.state(model)).items()}
    kept = kept_tensors(directory / LEFT_OUT_FILE, config)
    return to_source(params, TABLE, unused_tensors(config) | kept, config.model.decoder_layers), len(kept)


def kept_tensors(path: Path, config: Config) -> dict[str, np.ndarray]:
    """The content of LEFT_OUT_FILE; {} without the file. Raises InputError if it is damaged or does not fit the config."""
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            kept = dict(file)
    except (ValueError, OSError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({first_line(error)})") from error
    except AttributeError as error:  # numpy, on a file that is a single array
        raise InputError(f"{path}: cannot be read (expected an archive of arrays)") from error
    tensors = unused_tensors(config)
    for key, value in kept.items():
        if key not in tensors or (value.shape, value.dtype) != (tensors[key].shape, tensors[key].dtype):
            raise InputError(f"{path}: cannot be read ({key} has no place in the model of config.json)")
    return kept
