"""Converts an official file to a checkpoint directory: reads, recognizes, renames, resizes for the config's pictures, saves."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from convert import beit3, export, instancevg, recognize, rules
from convert.recognize import Recognized
from convert.torch_file import reader
from instancevg_jax.checkpoint import save_checkpoint
from instancevg_jax.config import Config, ModelConfig
from instancevg_jax.errors import InputError
from instancevg_jax.inputs.tokenizer import Tokenizer
from instancevg_jax.models.positions import FIRST_ROWS, Grid, fit_backbone

TABLES = {"beit3": beit3.TABLE, "instancevg": instancevg.TABLE}
BACKBONE = "backbone."
BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "empty_weight")  # averaged weights lack them
MOST_PADDING = 10  # unused rows of the text embedding: BEiT-3 has 64,010 rows, its tokenizer 64,003 ids


@dataclass(frozen=True)
class Weights:
    """The content of an official file: its tensors under the original's names, and the model they belong to."""

    path: Path
    layout: str
    checksums: bool
    state: dict[str, Any]
    found: Recognized
    outside: int = 0  # number of tensors that are not of the model, which are left out


def read(path: str | Path, ema: bool = False) -> Weights:
    """Read and recognize an official file.

    With `ema`, the averaged weights (`ema_state_dict`, `model_ema`), with the buffers of the plain weights, which averages lack.
    Raises InputError for a damaged file and for anything but InstanceVG and BEiT-3.
    """
    path = Path(path)
    checkpoint = reader.read_checkpoint(path)
    stored = reader.state_dict(checkpoint, ema)
    state = recognize.plain_names(stored)
    outside = len(stored) - len(state)
    if ema:
        plain = recognize.plain_names(reader.state_dict(checkpoint))
        state |= {key: value for key, value in plain.items() if key.endswith(BUFFERS) and key not in state}
    found = recognize.recognize(state, str(path))
    return Weights(path, checkpoint.layout, checkpoint.checksums, state, found, outside)


def check_tokenizer(tokenizer: Tokenizer, model: ModelConfig, source: str | Path) -> None:
    """Raise InputError unless the tokenizer's ids fill the model's text embedding, except for a few unused rows."""
    rows, ids = model.vocab_size, tokenizer.vocab_size
    if not rows - MOST_PADDING <= ids <= rows:
        expected = f"expected {rows - MOST_PADDING} to {rows} for a model with {rows} rows of text embeddings"
        raise InputError(f"{source}: a tokenizer with {ids} ids; {expected}")


def convert(
    weights: Weights,
    config: Config,
    tokenizer: Tokenizer,
    directory: str | Path,
    origin: str,
    report: Callable[[str], None],
    ema: bool = False,
    verbose: bool = False,
) -> None:
    """Write the checkpoint directory of a file.

    Args:
        weights: the file.
        config: of the new model; its picture and patch size may differ from the file's.
        tokenizer: is stored with the model.
        directory: where to write.
        origin: what provenance.json names as the source.
        report: called with one line for everything that is resized, left out or ambiguous.
        ema: the weights are averages. These may have stale copies of shared modules, of which the first is taken.
        verbose: report all tensors that do not fit, not only the first three.

    Raises:
        InputError: the file does not fit the config or the tokenizer, has values that are not finite floats, or writing fails.
    """
    source, kind, state = str(weights.path), weights.found.kind, weights.state
    recognize.check_size(weights.found, config.model, source)
    check_tokenizer(tokenizer, config.model, "the tokenizer")
    stored = _stored_model(weights.found, config.model, source)
    expected = export.expected_shapes(replace(config, model=stored))
    if kind == "beit3":
        expected = {name: shape for name, shape in expected.items() if name.startswith(BACKBONE)}
    found = rules.assign(state, TABLES[kind], expected)
    report(found.summary())
    if verbose:
        for line in found.problems():
            report(line)
    params = rules.to_target(state, TABLES[kind], expected, source, stale_aliases=ema)
    if ema:
        for key in rules.differing_aliases(state, found):
            report(f"{key} differs from {found.aliases[key]}, which is taken: the original shares this module")
    fitted = fit_backbone(params, Grid.of(stored), Grid.of(config.model))
    for name, value in fitted.items():
        size = f"pictures of {config.model.image_height} x {config.model.image_width}"
        sizes = f"{_sizes(params[name])} -> {_sizes(value)}"
        report(f"resized for {size}, patch {config.model.patch_size}: {name} {sizes}")
    params |= fitted
    provenance = {"converted_from": kind, "source": origin, "sha256": digest(weights.path), "layout": weights.layout}
    files = {"README.md": _model_card(provenance, config, sum(value.size for value in params.values()))}
    if kind == "instancevg":
        files[export.LEFT_OUT_FILE] = export.pack(_left_out(weights, config))
    save_checkpoint(directory, params, config, tokenizer.model_bytes, provenance, extra_files=files)


def digest(path: Path) -> str:
    """The SHA-256 of a file, or of the names and contents of the files in a folder. Raises InputError where one cannot be read."""
    try:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            lines = [f"{file.relative_to(path).as_posix()} {digest(file)}\n" for file in files]
            return hashlib.sha256("".join(lines).encode()).hexdigest()
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def _stored_model(found: Recognized, model: ModelConfig, source: str) -> ModelConfig:
    """`model` with the file's picture and patch size.

    A file does not state its picture's proportions: a square number of patches is assumed to be a square picture.
    """
    if found.patches is None or not found.patch_size:
        return model
    side = math.isqrt(max(found.patches, 0))
    height, width = (side, side) if side and side * side == found.patches else Grid.of(model)[:2]
    if height * width != found.patches:
        rows = found.patches + FIRST_ROWS
        raise InputError(f"{source}: a position table of {rows} rows; expected 3 and a square number to resize from")
    patch = found.patch_size
    return replace(model, image_height=height * patch, image_width=width * patch, patch_size=patch)


def _left_out(weights: Weights, config: Config) -> dict[str, np.ndarray]:
    """The original's tensors that our model lacks, kept for an export."""
    left_out, unused = rules.ignored_values(weights.state, instancevg.TABLE), export.unused_tensors(config)
    for key, value in left_out.items():
        wanted = unused.get(key)
        if wanted is None or (wanted.shape, wanted.dtype) != (value.shape, value.dtype):
            shape = list(value.shape)
            raise InputError(f"{weights.path}: {key} is {value.dtype} {shape}, which does not fit the config")
    return left_out


def _sizes(array: np.ndarray) -> str:
    return " x ".join(map(str, array.shape))


def _model_card(provenance: dict[str, Any], config: Config, count: int) -> bytes:
    model = config.model
    whole = provenance["converted_from"] == "instancevg"
    use = (
        '    from instancevg_jax import Predictor\n    Predictor.from_pretrained("THIS_DIRECTORY").predict(picture, "a dog")'
        if whole
        else "    python -m instancevg_jax.train --config CONFIG --config.model.pretrained=THIS_DIRECTORY"
    )
    rule = (
        f"A prediction counts a query as an object if its score is above {config.eval.score_threshold}, for every task. "
        "`instancevg evaluate` follows the rule of `eval.task` instead: REC and RES take the best query whatever its score."
    )
    return f"""# {"InstanceVG" if whole else "BEiT-3, the backbone of InstanceVG"}

Converted from `{provenance["source"]}` (sha256 {provenance["sha256"]}), a file of its authors, under their licence.

{use}

| | |
|---|---|
| values | {count:,} float32 |
| backbone | {model.depth} layers, {model.width} wide, patch {model.patch_size} |
| picture | {model.image_height} x {model.image_width} |
| text | at most {model.max_tokens} tokens |
| queries | {model.num_queries} |

{rule if whole else ""}
""".encode()
