"""One spelling of a parameter's path, shared by checkpoints, conversion and training: keys joined by dots."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx


def path_name(path: tuple[Any, ...]) -> str:
    """The name of a leaf from its path in a pytree: "backbone.blocks.0.text.fc1.kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def flatten(tree: nnx.State | Mapping[Any, Any]) -> dict[str, Any]:
    """The leaves by name. Names that are joined already, as in the result, stay as they are."""
    pure = nnx.to_pure_dict(tree) if isinstance(tree, nnx.State) else tree
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(pure)}
