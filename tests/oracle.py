"""Where the parity tests find the original's numbers.

A copy of the small fixtures lives in tests/parity/data; the large ones (full-size models, pictures) are read from ../shared/oracle
beside the repository, and a test that needs them is skipped, saying so, where that folder does not exist.
"""

import functools
import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
COPIED = HERE / "parity" / "data"
SHARED = Path(os.environ.get("INSTANCEVG_SHARED", HERE.parent.parent / "shared"))
SEED = 20240


def path(name: str) -> Path:
    """The file `name` ("fixtures/f3_tiny.npz", "manifests/tiny.json", "recipe.py"), or skip the test."""
    for root in (COPIED, SHARED / "oracle"):
        if (root / name).exists():
            return root / name
    pytest.skip(f"needs {name}: neither in {COPIED} nor in {SHARED / 'oracle'}")


def data(name: str) -> Path:
    """A file or folder of ../shared/data, or skip the test."""
    if not (SHARED / "data" / name).exists():
        pytest.skip(f"needs ../shared/data/{name}")
    return SHARED / "data" / name


@functools.cache
def fixture(name: str) -> dict[str, np.ndarray]:
    """All arrays of fixtures/<name>.npz."""
    with np.load(path(f"fixtures/{name}.npz"), allow_pickle=False) as file:
        return dict(file)


@functools.cache
def recipe():
    """The module that makes weights and inputs from names and seeds."""
    spec = importlib.util.spec_from_file_location("oracle_recipe", path("recipe.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def manifest(name: str) -> dict:
    """Keys, shapes, dtypes and aliases of one of the original's state dicts."""
    return json.loads(path(f"manifests/{name}.json").read_text())


def state(name: str, seed: int = SEED) -> dict[str, np.ndarray]:
    """The recipe's weights for a manifest, in the original's names and layouts."""
    return recipe().make_state(manifest(name), seed)
