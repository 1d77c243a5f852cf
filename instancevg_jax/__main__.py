"""The `instancevg` command: one name for every command of the project. `instancevg NAME --help` explains each.

`instancevg train ...` is `python -m instancevg_jax.train ...`; the installed command does not put the current directory on Python's
path, so that a `convert.py` or `configs/` of your own does not get in the way.
"""

import difflib
import importlib
import sys

from instancevg_jax.errors import InputError, run_command

COMMANDS = {
    "predict": ("instancevg_jax.predict", "find what a sentence refers to in pictures"),
    "serve": ("instancevg_jax.serve", "a web page and an HTTP API for a model"),
    "train": ("instancevg_jax.train", "train or fine-tune a model"),
    "evaluate": ("instancevg_jax.evaluate", "measure a model on the splits of a data set; write a report"),
    "reproduce": ("instancevg_jax.reproduce", "evaluate the official weights; compare with the published figures"),
    "check": ("data_pipelines.check", "find and fix faults in annotations and pictures"),
    "prepare": ("data_pipelines.prepare", "write annotations and pictures as a data set for training"),
    "convert": ("convert.__main__", "convert official PyTorch weights, or export to their layout"),
    "export": ("instancevg_jax.export", "export a model as a StableHLO program"),
}


def main() -> None:
    """Run the command that the first argument names. Raises InputError for an unknown name."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
    elif name == "--version":
        from instancevg_jax.runtime.version import __version__

        print(f"instancevg_jax {__version__}")
    elif name in COMMANDS:
        sys.argv = [f"instancevg {name}", *rest]
        importlib.import_module(COMMANDS[name][0]).main()
    else:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(COMMANDS)}"
        raise InputError(f"unknown command {name!r}; {hint}")


def _help() -> str:
    rows = "\n".join(f"  {name:10s} {text}" for name, (_, text) in COMMANDS.items())
    return f"usage: instancevg COMMAND ...\n\ncommands:\n{rows}\n\n`instancevg COMMAND --help` explains a command."


def console() -> None:
    """The entry point of the installed command."""
    run_command(main)


if __name__ == "__main__":
    console()
