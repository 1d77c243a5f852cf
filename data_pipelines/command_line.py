"""The options that `check` and `prepare` share."""

import argparse
import os
from pathlib import Path

from data_pipelines.annotations.mixture import MERGES
from data_pipelines.annotations.reading import CAPTIONS
from data_pipelines.records import FAMILIES
from instancevg_jax.errors import InputError


def parser_of(command: str, text: str) -> argparse.ArgumentParser:
    """A parser of a family, annotations and pictures. `text` is the command's documentation."""
    parser = argparse.ArgumentParser(
        prog=f"python -m data_pipelines.{command}",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "family", choices=FAMILIES, help="; ".join(f"{name}: {what}" for name, what in FAMILIES.items())
    )
    parser.add_argument(
        "--annotations",
        type=_path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="annotation files: those of the original, refer's refs(*).p, COCO with captions, ODVG or JSON lines",
    )
    parser.add_argument(
        "--images",
        type=_path,
        required=True,
        metavar="DIR",
        help="folder that the pictures' file names are relative to",
    )
    parser.add_argument(
        "--captions", choices=CAPTIONS, default="", help="; ".join(f"{name}: {what}" for name, what in CAPTIONS.items())
    )
    parser.add_argument(
        "--merge",
        choices=MERGES,
        default="",
        help="what to do about splits of one name in several annotation files; "
        + "; ".join(f"{name}: {what}" for name, what in MERGES.items()),
    )
    parser.add_argument("--workers", type=int, default=4, help="threads that decode pictures (default: 4)")
    return parser


def _path(text: str) -> Path:
    """A path of a command line. `~` is expanded, which shells do not do after "="."""
    return Path(os.path.expanduser(text))


def at_least_one(value: int, flag: str) -> int:
    """A number of a command line, checked."""
    if value < 1:
        raise InputError(f"{flag} is {value}; expected at least 1")
    return value
