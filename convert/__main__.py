"""Weights in and out: `python -m convert beit3|instancevg|export`.

    python -m convert instancevg InstanceVG-grefcoco.pth DIR --config configs/grefcoco.py --tokenizer beit3.spm
    python -m convert beit3 beit3_base_patch16_224.zip DIR --config configs/grefcoco.py --tokenizer beit3.spm
    python -m convert export DIR model.pth

SRC is a file (torch's .pth, .pt, .bin or BEiT-3's .zip, or .safetensors) or hf://OWNER/REPOSITORY/PATH. torch is not needed.
"""

import argparse
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from convert import beit3, export, hub, rules
from convert.instancevg import TABLE
from convert.torch_file import reader, writer
from instancevg_jax import config as configs
from instancevg_jax.checkpoint import check_destination, save_checkpoint
from instancevg_jax.config import Config
from instancevg_jax.errors import InputError, run_command
from instancevg_jax.inputs.tokenizer import Tokenizer
from instancevg_jax.runtime import command_line

BACKBONE = "backbone/"
BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "empty_weight")  # no average holds them
# least number of token ids of the model that belongs to so many rows of embeddings, where these are padded
TOKEN_IDS = {64010: 64000, 256: 112}  # BEiT-3, whose model has 64,003; config.tiny()


def convert_instancevg(args: argparse.Namespace) -> None:
    """An official InstanceVG checkpoint -> a checkpoint directory."""
    config, tokenizer = _settings(args)
    path, checkpoint, state = _read(args)
    expected = export.expected_shapes(config)
    state = _fit(state, config, str(path), "vis_enc.beit3")
    params = _convert(state, TABLE, expected, str(path), args.ema)
    left_out = rules.ignored_values(state, TABLE)
    unused = export.unused_tensors(config)
    for key, value in left_out.items():
        wanted = unused.get(key)
        if wanted is None or (wanted.shape, wanted.dtype) != (value.shape, value.dtype):
            raise InputError(f"{path}: {key} is {value.dtype} {list(value.shape)}, which does not fit the config")
    origin = _provenance(args.src, path, checkpoint, "instancevg")
    _save(args.dst, params, config, tokenizer, origin, {export.LEFT_OUT_FILE: export.pack(left_out)})


def convert_beit3(args: argparse.Namespace) -> None:
    """An official BEiT-3 checkpoint -> a checkpoint directory of the backbone alone, for training to start from."""
    config, tokenizer = _settings(args)
    path, checkpoint, state = _read(args)
    state = _fit(state, config, str(path), beit3.PREFIX)
    expected = {key: shape for key, shape in export.expected_shapes(config).items() if key.startswith(BACKBONE)}
    params = _convert(state, beit3.TABLE, expected, str(path), args.ema)
    _save(args.dst, params, config, tokenizer, _provenance(args.src, path, checkpoint, "beit3"), {})


def convert_back(args: argparse.Namespace) -> None:
    """A checkpoint directory -> a .pth file in the original's layout."""
    writer.check_destination(args.dst)
    state, kept = export.original_state(args.dir)
    writer.write_checkpoint(args.dst, state)
    unused = sum(isinstance(rules.classify(key, TABLE), rules.Ignore) for key in state)
    print(f"{len(state)} tensors written to {args.dst}")
    print(f"of these, unused by the model: {kept} as converted, {unused - kept} at neutral values (zero)")


def _settings(args: argparse.Namespace) -> tuple[Config, Tokenizer]:
    """The config and the tokenizer, which must fit each other, and a DST to write to: found out before the large file is read."""
    check_destination(args.dst)
    config = _load_config(args.config)
    spm = args.tokenizer or config.data.tokenizer
    if not spm:
        raise InputError("no tokenizer: give --tokenizer beit3.spm, or a config whose data.tokenizer names it")
    tokenizer = Tokenizer.from_file(spm)
    vocab = config.model.vocab_size
    least = TOKEN_IDS.get(vocab, vocab)
    if not least <= tokenizer.vocab_size <= vocab:
        expected = f"{least} to {vocab}" if least < vocab else vocab
        found = f"{spm}: {tokenizer.vocab_size} token ids"
        raise InputError(f"{found}; expected {expected}, those of the model with model.vocab_size {vocab}")
    return config, tokenizer


def _read(args: argparse.Namespace) -> tuple[Path, reader.Checkpoint, dict[str, Any]]:
    """The file and its state dict; that of an average is completed with the buffers of the weights beside it."""
    path = hub.local_file(args.src)
    checkpoint = reader.read_checkpoint(path)
    if not checkpoint.checksums:
        print(f"{path}: carries no checksums, so a damaged value would not be noticed")
    state = reader.state_dict(checkpoint, args.ema)
    if args.ema:
        plain = reader.state_dict(checkpoint)
        buffers = {key: value for key, value in plain.items() if key.endswith(BUFFERS) and key not in state}
        if buffers:
            print(f"{len(buffers)} buffers that the average lacks, such as BatchNorm's statistics, are those beside it")
        state |= buffers
    return path, checkpoint, state


def _fit(state: dict[str, Any], config: Config, source: str, prefix: str) -> dict[str, Any]:
    fitted = beit3.fit_to(state, config.model, source, prefix)
    for key, value in fitted.items():
        if value is not state[key]:
            size = f"pictures of {config.model.image_height} x {config.model.image_width}"
            print(f"resized for {size}, patch {config.model.patch_size}: {key} {_sizes(state[key])} -> {_sizes(value)}")
    return fitted


def _sizes(tensor: rules.Tensor) -> str:
    return " x ".join(map(str, tensor.shape))


def _convert(
    state: dict[str, Any], table: rules.RuleTable, expected: dict[str, tuple[int, ...]], source: str, ema: bool
) -> dict[str, np.ndarray]:
    """The parameters, with what became of each key printed. An average may hold stale copies of shared modules."""
    found = rules.plan(state, table, expected)
    print(found.summary())
    for line in found.problems():
        print(line)
    params = rules.to_target(state, table, expected, source, stale_aliases=ema)
    if ema:
        for key in rules.differing_aliases(state, found):
            print(f"{key} differs from {found.aliases[key]}, which is taken: one shared module in the original")
    return params


def _provenance(source: str, path: Path, checkpoint: reader.Checkpoint, kind: str) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    origin = {"source": source if source.startswith(hub.SCHEME) else path.name, "sha256": digest}
    return {"converted_from": kind, **origin, "layout": checkpoint.layout}


def _save(
    directory: str,
    params: dict[str, np.ndarray],
    config: Config,
    tokenizer: Tokenizer,
    provenance: dict[str, Any],
    files: dict[str, bytes],
) -> None:
    tree = traverse_util.unflatten_dict({tuple(path.split("/")): value for path, value in params.items()})
    card = _model_card(provenance, config, sum(value.size for value in params.values()))
    save_checkpoint(
        directory, tree, config, tokenizer.model_bytes, provenance, extra_files={**files, "README.md": card}
    )
    print(f"written to {directory}")


def _model_card(provenance: dict[str, Any], config: Config, count: int) -> bytes:
    model = config.model
    whole = provenance["converted_from"] == "instancevg"
    use = (
        '    from instancevg_jax import Predictor\n    Predictor.from_pretrained("THIS_DIRECTORY").predict(picture, "a dog")'
        if whole
        else "    python -m instancevg_jax.train --config CONFIG --config.model.pretrained=THIS_DIRECTORY"
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
| trained on | (write here what the source says) |
| measured | (write here what `instancevg_jax.evaluate` says, and on which split) |
""".encode()


def _load_config(spec: str) -> Config:
    """The Config of a .json file, or of a config file's get_config(): "configs/grefcoco.py" or "configs/grefcoco.py:large"."""
    name = spec.partition(":")[0]
    path = Path(name)
    if not path.is_file():
        raise InputError(f"{name}: no such file; expected a config such as configs/grefcoco.py or a config.json")
    if path.suffix == ".json":
        return configs.load(path)
    if path.suffix != ".py":
        raise InputError(f"{name}: expected a config such as configs/grefcoco.py or a config.json")
    return command_line.load_config(spec)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="beit3|instancevg|export")
    for name, run in (("beit3", convert_beit3), ("instancevg", convert_instancevg)):
        command = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        command.add_argument("src", metavar="SRC", help="a checkpoint file, or hf://OWNER/REPOSITORY/PATH")
        command.add_argument("dst", metavar="DST", help="the checkpoint directory to write")
        command.add_argument("--config", required=True, help="configs/X.py, configs/X.py:large, or a config.json")
        command.add_argument("--tokenizer", help="beit3.spm; by default the config's data.tokenizer")
        command.add_argument("--ema", action="store_true", help="take the averaged weights (ema_state_dict, model_ema)")
        command.set_defaults(run=run)
    command = commands.add_parser("export", help=convert_back.__doc__, description=convert_back.__doc__)
    command.add_argument("dir", metavar="DIR", help="a checkpoint directory")
    command.add_argument("dst", metavar="DST.pth", help="the file to write")
    command.set_defaults(run=convert_back)
    return parser.parse_args()


def main() -> None:
    """Run one command."""
    args = _arguments()
    args.run(args)


if __name__ == "__main__":
    run_command(main)
