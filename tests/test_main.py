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
def test_help_does_not_wait_for_jax(name):
    """Nor need the optional packages."""
    module = COMMANDS[name][0]
    assert callable(importlib.import_module(module).main)
    show = f"sys.argv = ['{name}', '--help']\ntry: {module}.main()\nexcept SystemExit: print('jax' in sys.modules)"
    code = f"import sys, {module}\n{show}"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "--help" in shown or "Options:" in shown
    assert shown.endswith("False\n")


def test_a_command_is_run_with_its_arguments():
    wrong = instancevg("predict", "--image", "absent.png", "--expression", "a dog")
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines()[-1].startswith("error: absent.png")


def test_an_unknown_command_is_named():
    wrong = instancevg("tran")
    assert (wrong.returncode, wrong.stderr) == (2, "error: unknown command 'tran'; did you mean 'train'?\n")
