"""The flags that commands on a config share: `--config FILE[:VARIANT]` and `--config.section.field=value`."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from instancevg_jax.config import Config, check
from instancevg_jax.errors import InputError


def parse(
    argv: Sequence[str],
    description: str,
    options: Mapping[str, tuple[str | None, str]],
    required: Sequence[str],
    switches: Mapping[str, str] | None = None,
) -> tuple[Config, dict[str, str | bool | None]]:
    """Parse a command line (without the program's name).

    Args:
        argv: the arguments.
        description: what `--help` says first.
        options: name -> (default, help) of the command's own string options.
        required: names that must be given; "config" may be among them.
        switches: name -> help of options without a value, which are off unless given.

    Returns:
        The config with its overrides, and the values of options and switches.

    Raises:
        InputError: an unknown flag or field, a value of the wrong type or out of range, a config file that is missing or fails.
        SystemExit: after `--help`.
    """
    values = flags.FlagValues()
    command = ["command", *argv]
    config_flags.DEFINE_config_file(
        "config", help_string="configs/NAME.py[:variant]", flag_values=values, sys_argv=command
    )
    for name, (default, text) in options.items():
        flags.DEFINE_string(name, default, text, flag_values=values)
    for name, text in (switches or {}).items():
        flags.DEFINE_boolean(name, False, text, flag_values=values)
    if any(argument in ("-h", "--help", "-help") for argument in argv):
        _help(description, {**options, **{name: (None, text) for name, text in (switches or {}).items()}}, required)
        sys.exit(0)
    _check_file(argv)
    try:
        rest = values(command)[1:]
    except KeyError as error:  # ml_collections, on a field that the dataclass lacks
        raise InputError(f"unknown config field: {error.args[0]}") from error
    except InputError:
        raise
    except Exception as error:  # a config file is a program, and may fail as any
        raise _cause(error) from error
    if rest:
        raise InputError(f"unexpected argument {rest[0]!r}; see --help")
    for name in required:
        if values[name].value is None:
            raise InputError(f"--{name} is required; see --help")
    config = values["config"].value
    if not isinstance(config, Config):
        name = config_flags.get_config_filename(values["config"])
        raise InputError(f"{name}: get_config() should return an instancevg_jax.config.Config")
    check(config)
    return config, {name: values[name].value for name in (*options, *(switches or {}))}


def load_config(spec: str) -> Config:
    """The config of FILE[:VARIANT], without overrides. Raises InputError as `parse` does."""
    return parse([f"--config={spec}"], "", {}, ())[0]


def override(config: Config, arguments: Sequence[str]) -> Config:
    """The config with `--config.section.field=value` applied. Raises InputError as `parse` does."""
    values, command = flags.FlagValues(), ["command", *arguments]
    try:
        config_flags.DEFINE_config_dataclass("config", config, flag_values=values, sys_argv=command)
        values(command)
    except KeyError as error:  # ml_collections, on a field that the dataclass lacks
        raise InputError(f"unknown config field: {error.args[0]}") from error
    except flags.Error as error:
        raise _cause(error) from error
    changed: Any = values["config"].value
    check(changed)
    return changed


def _check_file(argv: Sequence[str]) -> None:
    """Name a config file that is not there; the flags library would answer with a page of attempts."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        name, _, value = argument.partition("=")
        if name in ("--config", "-config"):
            path = Path((value or following).split(":")[0])
            if not path.is_file():
                raise InputError(f"--config {path}: no such file; expected something like configs/shapes.py")


def _cause(error: Exception) -> InputError:
    """What went wrong, in one line: an exception inside a config file arrives as the text of its traceback, the last line tells."""
    last = (str(error).strip().splitlines() or [""])[-1].strip()
    if not isinstance(error, (flags.Error, OSError, AttributeError, TypeError)):
        last = f"the config file fails: {type(error).__name__}: {last}"
    return InputError(last.removeprefix(f"{InputError.__module__}.{InputError.__name__}: "))


def _help(description: str, options: Mapping[str, tuple[str | None, str]], required: Sequence[str]) -> None:
    print(description.strip() + "\n")
    rows: Mapping[str, tuple[str | None, str]] = {
        "config": (None, "configs/NAME.py[:variant]; override any field with --config.section.field=value")
    }
    for name, (default, text) in {**rows, **options}.items():
        note = " (required)" if name in required else f" (default: {default})" if default else ""
        print(f"  --{name:12s} {text}{note}")
