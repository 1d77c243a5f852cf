"""The flags that commands on a config share: `--config FILE[:VARIANT]` and `--config.section.field=value`."""

import sys
from collections.abc import Mapping, Sequence

from absl import flags
from ml_collections import config_flags

from instancevg_jax.config import Config
from instancevg_jax.errors import InputError


def parse(
    argv: Sequence[str], description: str, options: Mapping[str, tuple[str | None, str]], required: Sequence[str]
) -> tuple[Config, dict[str, str | None]]:
    """Parse a command line (without the program's name).

    Args:
        argv: the arguments.
        description: what `--help` says first.
        options: name -> (default, help) of the command's own string options.
        required: names that must be given; "config" may be among them.

    Returns:
        The config with its overrides, and the options' values.

    Raises:
        InputError: an unknown flag or field, a value of the wrong type, a config file that is missing.
        SystemExit: after `--help`.
    """
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", help_string="configs/NAME.py[:variant]", flag_values=values)
    for name, (default, text) in options.items():
        flags.DEFINE_string(name, default, text, flag_values=values)
    if any(argument in ("-h", "--help", "-help") for argument in argv):
        _help(description, options, required)
        sys.exit(0)
    try:
        rest = values(["command", *argv])[1:]
    except KeyError as error:  # ml_collections, on a field that the dataclass lacks
        raise InputError(f"unknown config field: {error.args[0]}") from error
    except (flags.Error, OSError, AttributeError, TypeError) as error:
        raise InputError(str(error)) from error
    if rest:
        raise InputError(f"unexpected argument {rest[0]!r}; see --help")
    for name in required:
        if values[name].value is None:
            raise InputError(f"--{name} is required; see --help")
    config = values["config"].value
    if not isinstance(config, Config):
        raise InputError(f"{values['config'].value}: get_config() should return an instancevg_jax.config.Config")
    return config, {name: values[name].value for name in options}


def _help(description: str, options: Mapping[str, tuple[str | None, str]], required: Sequence[str]) -> None:
    print(description.strip() + "\n")
    rows: Mapping[str, tuple[str | None, str]] = {
        "config": (None, "configs/NAME.py[:variant]; override any field with --config.section.field=value")
    }
    for name, (default, text) in {**rows, **options}.items():
        note = " (required)" if name in required else f" (default: {default})" if default else ""
        print(f"  --{name:12s} {text}{note}")
