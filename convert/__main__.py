"""Convert official weights to checkpoint directories, and export them back: `python -m convert beit3|instancevg|export`.

    python -m convert instancevg InstanceVG-grefcoco.pth DIR --tokenizer beit3.spm
    python -m convert beit3 beit3_base_patch16_224.zip DIR --tokenizer beit3.spm
    python -m convert export DIR model.pth

SRC is a file (torch's .pth, .pt, .bin or BEiT-3's .zip, or .safetensors), the folder of an unpacked .zip, or
hf://OWNER/REPOSITORY/PATH. torch is not needed. `--config.section.field=value` overrides a setting, such as
--config.model.image_height=384.
"""

# Imports that take seconds are inside functions, so that --help and bad arguments are answered at once.
import argparse

from instancevg_jax.errors import run_command


def convert_official(args: argparse.Namespace) -> None:
    """Convert a file of the command's kind."""
    from convert import hub, official, recognize
    from instancevg_jax.checkpoint import check_destination
    from instancevg_jax.inputs.tokenizer import Tokenizer
    from instancevg_jax.runtime import command_line

    check_destination(args.dst)
    config = command_line.override(command_line.load_config(args.config), args.overrides) if args.config else None
    path = hub.local_file(args.src)
    weights = official.read(path, args.ema)
    if not weights.checksums:
        print(f"{path}: carries no checksums, so a damaged value would not be noticed")
    print(f"{path}: {weights.found}")
    if weights.outside:
        print(f"{path}: {weights.outside} tensors are not of the model and left out")
    recognize.check_kind(weights.found, args.kind, str(path))
    if config is None:
        config = command_line.override(recognize.config_of(weights.found, str(path)), args.overrides)
    spm = hub.find_tokenizer(path, args.tokenizer, config, download=False)
    origin = args.src if args.src.startswith(hub.SCHEME) else path.name
    tokenizer = Tokenizer.from_file(spm)
    official.convert(weights, config, tokenizer, args.dst, origin, print, args.ema, args.verbose)
    print(f"written to {args.dst}")


def convert_back(args: argparse.Namespace) -> None:
    """A checkpoint directory -> a .pth file in the original's layout."""
    from convert import export, rules
    from convert.instancevg import TABLE
    from convert.torch_file import writer

    writer.check_destination(args.dst)
    state, kept = export.original_state(args.dir)
    writer.write_checkpoint(args.dst, state)
    unused = sum(isinstance(rules.classify(key, TABLE), rules.Ignore) for key in state)
    print(f"{len(state)} tensors written to {args.dst}")
    print(f"of these, unused by the model: {kept} as converted, {unused - kept} at neutral values (zero)")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="beit3|instancevg|export")
    for kind, text in (
        ("beit3", "An official BEiT-3 file -> a checkpoint directory of the backbone, for training to start from."),
        ("instancevg", "An official InstanceVG file -> a checkpoint directory."),
    ):
        command = commands.add_parser(kind, help=text, description=text)
        command.add_argument("src", metavar="SRC", help="a file, or hf://OWNER/REPOSITORY/PATH")
        command.add_argument("dst", metavar="DST", help="the checkpoint directory to write")
        command.add_argument(
            "--config",
            help="a config: NAME[:VARIANT], FILE.py[:VARIANT] or a config.json; default: recognized from the file",
        )
        command.add_argument(
            "--tokenizer", help="beit3.spm; default: next to SRC, the config's data.tokenizer, or in the cache"
        )
        command.add_argument("--ema", action="store_true", help="take averaged weights (ema_state_dict, model_ema)")
        command.add_argument("--verbose", action="store_true", help="list every tensor that does not fit")
        command.set_defaults(run=convert_official, kind=kind)
    command = commands.add_parser("export", help=convert_back.__doc__, description=convert_back.__doc__)
    command.add_argument("dir", metavar="DIR", help="a checkpoint directory")
    command.add_argument("dst", metavar="DST.pth", help="the file to write")
    command.set_defaults(run=convert_back, kind="")
    args, rest = parser.parse_known_args()
    foreign = [word for word in rest if not (args.kind and word.startswith("--config."))]
    if foreign:
        parser.error(f"unrecognized arguments: {' '.join(foreign)}")
    args.overrides = rest
    return args


def main() -> None:
    """Run one command."""
    args = _arguments()
    args.run(args)


if __name__ == "__main__":
    run_command(main)
