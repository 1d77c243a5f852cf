"""README.md, docs/ and examples/ are true: their Python runs, and their commands, options, settings and files exist.

A page's blocks run in a folder that holds what the page assumes: `sandbox` makes it.
"""

import argparse
import contextlib
import importlib
import inspect
import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from convert import hub
from data_pipelines import draw_shapes
from data_pipelines.prepare import prepare
from data_pipelines.shapes.dataset import TOKENIZER_PATH
from instancevg_jax import config as configs
from instancevg_jax.__main__ import COMMANDS
from instancevg_jax.answers.predictor import DEMO_CHECKPOINT
from instancevg_jax.runtime import command_line
from instancevg_jax.training import own_data
from tests.data_pipelines.make import annotation, generalized, picture

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
SECTIONS = {name.partition(".")[0] for name in configs.fields(configs.Config())}
CHEAP = ("instancevg predict", "instancevg check custom", "instancevg prepare custom")  # these commands really run
OTHER_OPTIONS = {"--finetune-from"}  # of the original
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.M | re.S)
COMMAND = re.compile(rf"(?:\binstancevg +(?:{'|'.join(COMMANDS)})|\bpython -m [\w.]+)\b.*")


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """(number of its first line, text) of each block of a page in a language."""
    text = page.read_text()
    return [
        (text[: found.start(3)].count("\n") + 1, re.sub(f"^{found[1]}", "", found[3], flags=re.M))
        for found in FENCE.finditer(text)
        if found[2] == language
    ]


def code_spans(page: Path) -> list[str]:
    """The inline code of a page, each on one line."""
    spans = re.findall(r"`([^`]+)`", FENCE.sub("", page.read_text()))
    return [" ".join(span.split()) for span in spans]


def commands(page: Path) -> list[str]:
    """The commands of this project in a page's shell blocks and inline code, each without what a shell does after it."""
    shell = "\n".join(text for _, text in blocks(page, "bash")).replace("\\\n", " ")
    found = [match[0] for line in [*shell.splitlines(), *code_spans(page)] for match in COMMAND.finditer(line)]
    found = [re.split(r" (?:[&|>#]|\[--)", " ".join(one.split()))[0] for one in found]
    return [one.removesuffix("'") if one.count("'") % 2 else one for one in found]


def cheap(page: Path) -> list[str]:
    """The commands of a page's shell blocks that the built-in model, or no model, answers at once."""
    return [one for one in commands(page) if one.startswith(CHEAP) and "--" in one]


def of_pages(find: Callable[[Path], list[Any]]) -> list[Any]:
    """A test parameter for each thing that `find` finds in a page."""
    return [pytest.param(one, id=f"{page.name}-{one}"[:90]) for page in PAGES for one in dict.fromkeys(find(page))]


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: pictures, annotations, data sets and checkpoints under the names that the pages use.

    Every checkpoint is a link to the built-in model, and every tokenizer to the embedded data's.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INSTANCEVG_JAX_CACHE", str(tmp_path / "cache"))
    with contextlib.redirect_stdout(io.StringIO()):
        draw_shapes.main(["--index", "7", "--output", "scene.png"])
    for name in ("photos/a.png", "photos/b.png", "pictures/street.jpg", "street.jpg", "shapes.png"):
        Path(name).parent.mkdir(exist_ok=True)
        cv2.imwrite(name, np.full((480, 640, 3), 90, np.uint8))
    for name in ("instancevg-grefcoco", "InstanceVG-grefcoco.pth", "runs/mine/checkpoint", "runs/mine/best", "DIR"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).symlink_to(DEMO_CHECKPOINT)
    Path("weights").mkdir()
    for name in ("beit3.spm", "weights/beit3.spm"):
        Path(name).symlink_to(TOKENIZER_PATH)
    Path("pairs.jsonl").write_text('{"image": "scene.png", "expression": "a red circle"}\n')
    (own,) = blocks(ROOT / "docs" / "data.md", "json")
    Path("my.jsonl").write_text(own[1])
    picture(Path("train2014"), "1.jpg")
    Path("grefs").mkdir()
    Path("grefs/instance.json").write_text(json.dumps({"train": [generalized(1, ["the left man"], annotation())]}))
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_of_a_page_runs(page: Path, sandbox: Path, monkeypatch: pytest.MonkeyPatch):
    accepted = inspect.signature(own_data.fine_tune).bind  # tests/training/test_own_data.py trains
    monkeypatch.setattr(own_data, "fine_tune", accepted)
    if page.name == "data.md":
        prepare("grefcoco", [Path("grefs/instance.json")], Path("train2014"), Path("data/prepared"))
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for line, text in blocks(page, "python"):
        exec(compile("\n" * (line - 1) + text, page, "exec"), namespace)


def test_the_notebook_runs(sandbox: Path):
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            assert not cell["outputs"]
            assert cell["execution_count"] is None
            exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, cell {number}", "exec"), namespace)


def module_of(command: str) -> tuple[str, list[str]]:
    """The module that a command runs, and its arguments."""
    words = shlex.split(command)
    if words[0] == "instancevg":
        return COMMANDS[words[1]][0], words[2:]
    return words[2], words[3:]


def run(module: str, arguments: list[str]) -> None:
    """What the command does, here in this process. Raises what its main does, and SystemExit for a status but 0."""
    main = importlib.import_module(module).main
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *arguments])
        try:
            main(arguments) if module.startswith("benchmarks") and inspect.signature(main).parameters else main()
        except SystemExit as end:
            if end.code:
                raise


@pytest.mark.parametrize("page", [page for page in PAGES if cheap(page)], ids=lambda page: page.name)
def test_cheap_commands_run(page: Path, sandbox: Path):
    for command in cheap(page):
        run(*module_of(command))


class Parsed(Exception):
    """The command line was accepted."""


@pytest.mark.parametrize("command", of_pages(commands))
def test_options_and_settings_of_commands_exist(command: str, monkeypatch: pytest.MonkeyPatch):
    """The command runs up to the end of its parser."""
    module, arguments = module_of(command)
    if module.startswith("tests.") or not arguments:
        importlib.import_module(module)
        return
    real_parse = argparse.ArgumentParser.parse_known_args

    def parse(parser: argparse.ArgumentParser, *args: Any) -> Any:
        known, rest = real_parse(parser, *args)
        config = command_line.load_config(known.config) if getattr(known, "config", None) else configs.Config()
        command_line.override(config, rest)
        if "--help" not in arguments:
            raise Parsed
        return known, rest

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse)
    monkeypatch.setattr(hub, "local_checkpoint", lambda *_, **__: DEMO_CHECKPOINT)  # in place of a download
    monkeypatch.chdir(ROOT)
    with contextlib.suppress(Parsed):
        run(module, arguments)
        assert "--help" in arguments


def help_of(module: str, *command: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        run(module, [*command, "--help"])
    return shown.getvalue()


def test_mentioned_options_exist():
    modules = [module for module, _ in COMMANDS.values()] + ["data_pipelines.draw_shapes", "benchmarks.precision"]
    texts = [*map(help_of, modules), help_of("convert.__main__", "instancevg")]
    known = set(re.findall(r"--[a-z][\w.-]*", " ".join(texts))) | OTHER_OPTIONS
    known |= {"--config.section.field", "--config.model."}  # any of them
    for page in PAGES:
        mentioned = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*", "\n".join(code_spans(page))))
        assert not mentioned - known, page.name


def test_mentioned_settings_exist():
    known = set(configs.fields(configs.Config()))
    for page in PAGES:
        for section, field in re.findall(
            rf"(?<![\w./-])({'|'.join(SECTIONS)})\.([a-z_]+)", "\n".join(code_spans(page))
        ):
            assert field in ("py", "json") or f"{section}.{field}" in known, f"{page.name}: {section}.{field}"


def test_mentioned_files_exist():
    folders = ("instancevg_jax", "data_pipelines", "convert", "configs", "benchmarks", "tests", "docs", "examples")
    known = [f"/{path.relative_to(ROOT)}" for folder in folders for path in (ROOT / folder).rglob("*.*")]
    known += [f"/{path.name}" for path in ROOT.glob("*.*")]
    for page in PAGES:
        trees = [name for _, text in blocks(page, "text") for name in re.findall(r"\w+\.(?:py|html)", text)]
        spans = [span for span in code_spans(page) if re.fullmatch(r"[\w/]+\.(?:py|md|toml|ipynb)", span)]
        for name in trees + spans:
            assert any(one.endswith(f"/{name}") for one in known), f"{page.name}: {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_shell_blocks_are_sound(page: Path):
    text = FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / target).exists(), target
    for _, shell in blocks(page, "bash"):
        assert subprocess.run(["bash", "-n"], input=shell, text=True).returncode == 0, shell
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"\bmake ([a-z-]+)(?=`|\s+#|$)", page.read_text(), re.M)) <= targets
