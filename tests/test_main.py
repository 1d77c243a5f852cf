"""The `instancevg` command."""

import importlib
import subprocess
import sys

import pytest

from instancevg_jax.__main__ import COMMANDS
from instancevg_jax.runtime.version import __version__


def instancevg(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "instancevg_jax", *arguments], capture_output=True, text=True)


def test_help_and_version():
    assert all(name in instancevg("--help").stdout for name in COMMANDS)
    assert instancevg("--version").stdout == f"instancevg_jax {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_main(name):
    assert callable(importlib.import_module(COMMANDS[name][0]).main)


def test_a_command_is_run_with_its_arguments():
    wrong = instancevg("predict", "--image", "absent.png", "--expression", "a dog")
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines()[-1].startswith("error: absent.png")


def test_an_unknown_command_is_named():
    wrong = instancevg("tran")
    assert (wrong.returncode, wrong.stderr) == (2, "error: unknown command 'tran'; did you mean 'train'?\n")
