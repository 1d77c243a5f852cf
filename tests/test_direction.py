"""The one rule of direction: imports point from commands to models, never back."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = [
    {"errors", "version", "files", "config", "types"},
    {"boxes", "resize", "positions", "preprocess", "tokenizer"},
    {"models"},
    {"matching", "losses", "postprocess"},
    {
        "metrics",
        "threshold_sweep",
        "optim",
        "train_state",
        "sharding",
        "checkpoint",
        "visualize",
        "report",
        "run_log",
        "run_states",
        "command_line",
    },
    {"train", "evaluate", "evaluation", "evaluation_report", "coco_results", "predict", "predictor", "serve"},
]
DATA_MAY_USE = {"errors", "files", "types", "preprocess", "tokenizer", "resize", "config"}


def imported(path: Path) -> set[str]:
    """Dotted names that a module imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def project_parts(path: Path) -> set[str]:
    """Which of our modules a file uses: the second part of instancevg_jax.X."""
    return {name.split(".")[1] for name in imported(path) if name.startswith("instancevg_jax.")}


def layer(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if name in names)


MODULES = sorted(p for p in (ROOT / "instancevg_jax").rglob("*.py") if p.name != "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_left(path):
    own = path.relative_to(ROOT / "instancevg_jax").parts[0].removesuffix(".py")
    known = set().union(*LAYERS)
    for other in project_parts(path) & known:
        assert layer(other) <= layer(own), f"{own} imports {other}"
    if layer(own) < len(LAYERS) - 1:
        assert not any(name.startswith("data_pipelines") for name in imported(path))
    assert not any(name.split(".")[0] == "convert" for name in imported(path))


@pytest.mark.parametrize("path", sorted((ROOT / "data_pipelines").glob("*.py")), ids=lambda p: p.name)
def test_data_pipelines_know_no_models(path):
    assert project_parts(path) <= DATA_MAY_USE
    assert not any(name.split(".")[0] == "convert" for name in imported(path))
