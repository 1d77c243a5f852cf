"""The command line of commands on a config: `--config CONFIG`, `--config.SECTION.FIELD=VALUE`, and the command's own options.

CONFIG is a Python file whose `get_config` returns a `Config` or an `ml_collections.ConfigDict` (FILE[:VARIANT]), a config.json that
a run has written, or the name of a config of this project (NAME[:VARIANT], such as refcoco:large).
"""

import argparse
import ast
import difflib
import importlib
import importlib.util
import pkgutil
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from instancevg_jax import config as configs
from instancevg_jax.config import Config
from instancevg_jax.errors import InputError, first_line

CONFIG_HELP = (
    "a file configs/NAME.py[:VARIANT], a config by NAME[:VARIANT] (such as refcoco:large), or the config.json of a run; "
    "--config.SECTION.FIELD=VALUE overrides a field, see the list below"
)
DISTRIBUTED_HELP = (
    "run as one of several processes: 'auto' (TPU pods, Slurm, Open MPI, Kubernetes), or "
    "COORDINATOR_HOST:PORT,PROCESS_ID,NUM_PROCESSES"
)
WIDTH = 100  # characters of a line of --help
OVERRIDE = "--config."


def parser_of(command: str, description: str) -> argparse.ArgumentParser:
    """A parser with the options --config and --help. The command adds its own, and calls `parse`."""
    parser = argparse.ArgumentParser(
        prog=f"instancevg {command}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--config", metavar="CONFIG", help=CONFIG_HELP)
    parser.add_argument("-h", "--help", action="store_true", help="show this text, with the values of --config")
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options on a command line, and the other arguments, which `values_of` and `override` take.

    Raises InputError for an unknown option, and for one without a valid value; SystemExit after `--help`.
    """
    try:
        args, rest = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise InputError(f"{error}; see --help") from error
    if args.help:
        parser.epilog = _help_of(load_config(args.config) if args.config else Config())
        print(parser.format_help(), end="")  # print_help hides a full disk
        sys.exit(0)
    for name in (argument.partition("=")[0] for argument in rest):
        if name.startswith("--") and not name.startswith(OVERRIDE):
            near = difflib.get_close_matches(name, re.findall(r"--[\w-]+", parser.format_usage()), n=1)
            raise InputError(f"unknown option {name}; {f'did you mean {near[0]}?' if near else 'see --help'}")
    return args, rest


def load_config(spec: str | None) -> Config:
    """The config that `--config` names, without overrides. Raises InputError if there is none, or its file fails."""
    if not spec:
        raise InputError("--config is required; see --help")
    name, _, variant = spec.partition(":")
    path = Path(name)
    if path.suffix == ".json":
        if variant:
            raise InputError(f"--config {spec}: a config.json has no variants; expected {name}")
        return configs.load(path)
    module = _module_of_file(path) if path.is_file() else _module_of_name(name)
    try:
        config = module.get_config(variant) if variant else module.get_config()
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # a config file is a program, which may raise anything
        raise _failed(name, error) from error
    if not isinstance(config, Config):
        config = _of_config_dict(name, config)
    configs.check(config)
    return config


def _of_config_dict(name: str, config: Any) -> Config:
    """The config of sections and fields that a ConfigDict, the usual result of `get_config`, sets."""
    from ml_collections import ConfigDict

    sections: Any = config.to_dict() if isinstance(config, ConfigDict) else {"": None}
    if not all(isinstance(section, dict) for section in sections.values()):
        raise InputError(
            f"{name}: get_config() should return an instancevg_jax.config.Config, or a ConfigDict of sections such as model"
        )
    values = {f"{title}.{field}": value for title, section in sections.items() for field, value in section.items()}
    return configs.with_values(Config(), values)


def override(config: Config, arguments: Sequence[str]) -> Config:
    """A copy of the config with `--config.SECTION.FIELD=VALUE` applied. Raises InputError as `config.with_values` does."""
    return configs.with_values(config, values_of(config, arguments))


def values_of(config: Config, arguments: Sequence[str]) -> dict[str, Any]:
    """Dotted name -> value of each override, `--config.SECTION.FIELD=VALUE` or `--config.SECTION.FIELD VALUE`.

    A tuple is written as in Python, or as words separated by commas. Raises InputError for any other argument, and for an
    unknown field.
    """
    values: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        name, equals, text = rest.pop(0).partition("=")
        if not name.startswith(OVERRIDE):
            raise InputError(f"unexpected argument {name!r}; see --help")
        if not equals and not rest:
            raise InputError(f"{name} has no value; see --help")
        field = name.removeprefix(OVERRIDE)
        values[field] = _value(text if equals else rest.pop(0), configs.value_of(config, field))
    return values


def _value(text: str, default: Any) -> Any:
    """The value of the type of `default`, or the text itself, which `config.with_values` refuses."""
    try:
        if isinstance(default, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if isinstance(default, int | float):
            return type(default)(text)
        if isinstance(default, tuple):
            value = ast.literal_eval(text)
            return value if isinstance(value, tuple | list) else (value,)
    except (ValueError, KeyError, SyntaxError):
        return tuple(text.split(",")) if isinstance(default, tuple) else text
    return text


def _module_of_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("config_file", path)
    if spec is None or spec.loader is None:
        raise InputError(f"--config {path}: expected a Python file (.py) or a config.json")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise _failed(str(path), error) from error
    return module


def _module_of_name(name: str) -> ModuleType:
    """The module of the `configs` package, which is installed with this one."""
    package = importlib.import_module("configs")
    known = [module.name for module in pkgutil.iter_modules(package.__path__)]
    if name not in known:
        found = "is a folder" if Path(name).is_dir() else "no such file"
        raise InputError(
            f"--config {name}: {found}; expected a config file, the config.json of a run, or one of {', '.join(known)}"
        )
    return importlib.import_module(f"configs.{name}")


def _failed(name: str, error: BaseException) -> InputError:
    return InputError(f"{name}: the config file fails: {type(error).__name__}: {first_line(error)}")


def _help_of(config: Config) -> str:
    """Every field with its value, documentation and choices."""
    lines, section = [], ""
    for name, (field, value) in configs.fields(config).items():
        if section != name.partition(".")[0]:
            section = name.partition(".")[0]
            lines += [f"\nConfig, section {section}:"]
        choices = field.metadata["choices"]
        text = field.metadata["text"] + (f" One of {', '.join(choices)}." if choices else "")
        lines += [f"  {OVERRIDE}{name}={value}", textwrap.indent(textwrap.fill(text, WIDTH - 6), " " * 6)]
    return "\n".join(lines).lstrip()
