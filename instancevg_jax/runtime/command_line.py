"""The command line of commands on a config: `--config CONFIG`, `--config.section.field=value`, and the command's own options.

CONFIG is a Python file with `get_config` (FILE[:VARIANT]), a config.json that a run has written, or the name of a config of this
project (NAME[:VARIANT], such as refcoco:large).
"""

import copy
import difflib
import importlib
import importlib.util
import pkgutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import config_flags

from instancevg_jax import config as configs
from instancevg_jax.config import Config
from instancevg_jax.errors import InputError, first_line

CONFIG_HELP = (
    "A file configs/NAME.py[:VARIANT], a config by NAME[:VARIANT] (such as refcoco:large), or the config.json of a run. "
    "Override single fields with --config.SECTION.FIELD=VALUE; see the list below."
)
DISTRIBUTED_OPTION = (
    None,
    "Run as one of several processes: 'auto' (TPU pods, Slurm, Open MPI, Kubernetes), or "
    "COORDINATOR_HOST:PORT,PROCESS_ID,NUM_PROCESSES.",
)
WIDTH = 100  # characters of a line of --help


def parse(
    argv: Sequence[str],
    description: str,
    options: Mapping[str, tuple[str | None, str]],
    required: Sequence[str],
    switches: Mapping[str, str] | None = None,
    start: Config | None = None,
) -> tuple[Config, dict[str, str | bool | None]]:
    """Parse a command line (without the program's name).

    Args:
        argv: the arguments.
        description: the first part of `--help`.
        options: name -> (default, help) of the command's own string options.
        required: names of the options that must be given, besides --config.
        switches: name -> help of options without a value, which are off unless given.
        start: the config that overrides apply to where there is no --config.

    Returns:
        The config with its overrides, and the values of options and switches.

    Raises:
        InputError: an unknown flag or field, a value of the wrong type or out of range, a config file that is missing or fails.
        SystemExit: after `--help`.
    """
    switches = switches or {}
    spec, argv = _take_config(argv)
    if any(argument in ("-h", "--help", "-help") for argument in argv):
        rows = {**options, **{name: (None, text) for name, text in switches.items()}}
        print(_help(description, rows, required, load_config(spec) if spec else start or Config()))
        sys.exit(0)
    if spec is None and start is None:
        raise InputError("--config is required; see --help")
    config = load_config(spec) if spec is not None else copy.deepcopy(start)
    assert config
    _check_fields(argv, config)
    values, command = flags.FlagValues(), ["command", *argv]
    config_flags.DEFINE_config_dataclass("config", config, flag_values=values, sys_argv=command)
    for name, (default, text) in options.items():
        flags.DEFINE_string(name, default, text, flag_values=values)
    for name, text in switches.items():
        flags.DEFINE_boolean(name, False, text, flag_values=values)
    try:
        rest = values(command)[1:]
    except flags.Error as error:
        raise InputError(" ".join(str(error).split())) from error
    if rest:
        raise InputError(f"unexpected argument {rest[0]!r}; see --help")
    for name in required:
        if name != "config" and values[name].value is None:
            raise InputError(f"--{name} is required; see --help")
    config = values["config"].value
    assert isinstance(config, Config)
    configs.check(config)
    return config, {name: values[name].value for name in (*options, *switches)}


def load_config(spec: str) -> Config:
    """The config that `--config` names, without overrides. Raises InputError if there is none, or its file fails."""
    name, _, variant = spec.partition(":")
    path = Path(name)
    if path.suffix == ".json":
        return configs.load(path)
    module = _module_of_file(path) if path.is_file() else _module_of_name(name)
    try:
        config = module.get_config(variant) if variant else module.get_config()
    except InputError:
        raise
    except Exception as error:  # a config file is a program, which may raise anything
        raise _failed(name, error) from error
    if not isinstance(config, Config):
        raise InputError(f"{name}: get_config() should return an instancevg_jax.config.Config")
    configs.check(config)
    return config


def override(config: Config, arguments: Sequence[str]) -> Config:
    """The config with `--config.section.field=value` applied. Raises InputError as `parse` does."""
    _check_fields(arguments, config)
    values, command = flags.FlagValues(), ["command", *arguments]
    try:
        config_flags.DEFINE_config_dataclass("config", config, flag_values=values, sys_argv=command)
        values(command)
    except flags.Error as error:
        raise InputError(" ".join(str(error).split())) from error
    changed = values["config"].value
    assert isinstance(changed, Config)
    configs.check(changed)
    return changed


def option(argv: Sequence[str], name: str) -> str | None:
    """The value of `--name VALUE` or `--name=VALUE`, before `parse`; None if it is not given."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        given, separator, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and given == name:
            return value if separator else following
    return None


def overridden(argv: Sequence[str], config: Config) -> dict[str, Any]:
    """The fields that `argv` overrides, by dotted name, with their values in the parsed `config`."""
    names = {argument.partition("=")[0].lstrip("-") for argument in argv if argument.startswith("-")}
    return {
        name: value
        for name, (_, value) in configs.fields(config).items()
        if names & {f"config.{name}", f"noconfig.{name}"}
    }


def _module_of_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("config_file", path)
    if spec is None or spec.loader is None:
        raise InputError(f"--config {path}: expected a Python file (.py) or a config.json")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except InputError:
        raise
    except Exception as error:
        raise _failed(str(path), error) from error
    return module


def _module_of_name(name: str) -> ModuleType:
    """The module of the `configs` package, which is installed with this one."""
    package = importlib.import_module("configs")
    known = [module.name for module in pkgutil.iter_modules(package.__path__)]
    if name not in known:
        raise InputError(
            f"--config {name}: no such file; expected a config file, the config.json of a run, or one of {', '.join(known)}"
        )
    return importlib.import_module(f"configs.{name}")


def _failed(name: str, error: Exception) -> InputError:
    return InputError(f"{name}: the config file fails: {type(error).__name__}: {first_line(error)}")


def _take_config(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of `--config`, if it is given, and the other arguments."""
    spec, others, rest = None, [], list(argv)
    while rest:
        argument = rest.pop(0)
        flag, equals, value = argument.partition("=")
        if flag not in ("--config", "-config"):
            others.append(argument)
        elif equals:
            spec = value
        elif rest:
            spec = rest.pop(0)
        else:
            raise InputError("--config has no value; see --help")
    return spec, others


def _check_fields(argv: Sequence[str], config: Config) -> None:
    """Raise InputError for an override of a field that does not exist, naming the most similar one."""
    known = list(configs.fields(config))
    for argument in argv:
        name = argument.partition("=")[0].lstrip("-").removeprefix("no")
        field = name.removeprefix("config.")
        if not argument.startswith("-") or field == name or field in known:
            continue
        leaf = field.rpartition(".")[2]
        near = [other for other in known if other.rpartition(".")[2] == leaf]
        near = near or difflib.get_close_matches(field, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "see --help for all fields"
        raise InputError(f"--config.{field}: no such field; {hint}")


def _help(
    description: str, options: Mapping[str, tuple[str | None, str]], required: Sequence[str], config: Config
) -> str:
    rows: Mapping[str, tuple[str | None, str]] = {"config": (None, CONFIG_HELP), **options}
    lines = [description.strip(), "", "Options:"]
    for name, (default, text) in rows.items():
        note = " (required)" if name in required else f" (default: {default})" if default else ""
        lines += _entry(f"--{name}", text + note)
    for name, (field, value) in configs.fields(config).items():
        section = name.partition(".")[0]
        if not any(line == f"Config, section {section}:" for line in lines):
            lines += ["", f"Config, section {section}:"]
        choices = field.metadata["choices"]
        note = f" One of {', '.join(choices)}." if choices else ""
        lines += _entry(f"--config.{name}={value}", field.metadata["text"] + note)
    return "\n".join(lines)


def _entry(flag: str, text: str) -> list[str]:
    return [f"  {flag}", *textwrap.wrap(text, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)]
