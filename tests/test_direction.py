"""The one rule of direction: a room imports only itself and the rooms above it in the list. docs/architecture.md draws it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GROUND_FLOOR = {"errors", "types", "files", "config", "boxes"}
ROOMS = [
    "ground floor",
    "pickles",
    "runtime",
    "inputs",
    "models",
    "objective",
    "checkpoint",
    "answers",
    "evaluation",
    "training",
    "serving",
    "front doors",
]
DATA_PIPELINES_MAY_USE = {"ground floor", "pickles", "runtime", "inputs"}
MAY_USE_CONVERT = {"answers", "training"}
MAY_USE_DATA_PIPELINES = {"evaluation", "training", "serving", "front doors"}
LARGEST_FOLDER = 13  # modules


def imported(path: Path) -> set[str]:
    """Dotted names that a module imports, anywhere in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def room(name: str) -> str:
    """The room of a file or folder directly inside instancevg_jax."""
    return "ground floor" if name in GROUND_FLOOR else name if name in ROOMS else "front doors"


def rooms_used(path: Path) -> set[str]:
    """The rooms of instancevg_jax that a module imports from."""
    parts = [name.split(".")[1] for name in imported(path) if name.startswith("instancevg_jax.")]
    return {room(part) for part in parts if part != "__version__"}


def modules(package: str) -> list[Path]:
    """All modules of a package; programs under assets/ are data."""
    return sorted(p for p in (ROOT / package).rglob("*.py") if p.name != "__init__.py" and "assets" not in p.parts)


def uses(path: Path, package: str) -> bool:
    return any(name.split(".")[0] == package for name in imported(path))


@pytest.mark.parametrize("path", modules("instancevg_jax"), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_rooms_above_it(path):
    own = room(path.relative_to(ROOT / "instancevg_jax").parts[0].removesuffix(".py"))
    below = ROOMS[ROOMS.index(own) + 1 :]
    assert not rooms_used(path) & set(below)
    assert own in MAY_USE_DATA_PIPELINES or not uses(path, "data_pipelines")
    assert own in MAY_USE_CONVERT or not uses(path, "convert")


@pytest.mark.parametrize("path", modules("data_pipelines"), ids=lambda p: str(p.relative_to(ROOT)))
def test_data_pipelines_know_no_models(path):
    assert rooms_used(path) <= DATA_PIPELINES_MAY_USE
    assert not uses(path, "convert")


@pytest.mark.parametrize("package", ["instancevg_jax", "data_pipelines", "convert", "configs", "benchmarks"])
def test_folders_are_small_and_say_what_they_hold(package):
    for folder in {path.parent for path in modules(package)}:
        assert len([p for p in folder.glob("*.py") if p.name != "__init__.py"]) <= LARGEST_FOLDER, folder
        if package not in ("benchmarks",):
            text = (folder / "__init__.py").read_text()
            assert ast.get_docstring(ast.parse(text)), f"{folder}/__init__.py has no docstring"
