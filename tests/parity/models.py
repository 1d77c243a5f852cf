"""Models of the fixtures, with the recipe's weights in them."""

import dataclasses
import functools

import jax
import numpy as np
from flax import nnx

from convert.instancevg import TABLE
from convert.rules import to_target
from instancevg_jax.config import ModelConfig, base, large, tiny
from instancevg_jax.models.instancevg import InstanceVG
from tests import oracle

ONE_QUERY = {"num_queries": 1, "max_tokens": 20}
CONFIGS = {
    "tiny": tiny(),
    "tiny1": dataclasses.replace(tiny(), **ONE_QUERY),
    "grefcoco": base(),
    "refcoco_base": dataclasses.replace(base(), **ONE_QUERY),
    "refcoco_large": dataclasses.replace(large(), **ONE_QUERY),
}


def without_dropout(config: ModelConfig) -> ModelConfig:
    """The config of the training fixtures."""
    return dataclasses.replace(config, drop_path=0.0, head_dropout=0.0)


def load(config: ModelConfig, manifest: str) -> InstanceVG:
    """A model of `config` with the weights that the recipe gives for `manifest`."""
    graph, abstract = nnx.split(nnx.eval_shape(lambda: InstanceVG(config, rngs=nnx.Rngs(0))))
    flat = dict(nnx.to_flat_state(abstract))
    names = {".".join(map(str, path)): path for path in flat}
    values = to_target(oracle.state(manifest), TABLE, {name: flat[path].shape for name, path in names.items()})
    state = nnx.from_flat_state([(names[n], flat[names[n]].replace(jax.numpy.asarray(v))) for n, v in values.items()])
    return nnx.merge(graph, state)


@functools.cache
def model(name: str) -> InstanceVG:
    """The model of a fixture in evaluation mode; shared, so do not write to it."""
    return load(CONFIGS[name], name)


def inputs(image: tuple, tokens: tuple) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images [B, H, W, 3], ids and mask in our conventions, from the recipe's arguments."""
    recipe = oracle.recipe()
    ids, padding = recipe.make_tokens(*tokens)
    return recipe.make_image(*image).transpose(0, 2, 3, 1), ids.astype(np.int32), padding == 0


def assert_close(actual, expected, atol: float, name: str) -> None:
    """Equal within `atol`, with the largest difference in the message."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"{name}: {actual.shape} instead of {expected.shape}"
    worst = np.abs(actual.astype(np.float64) - expected).max()
    assert worst <= atol, f"{name}: off by {worst:.2e}, allowed {atol:.0e}"


def stats(x: np.ndarray) -> np.ndarray:
    """The fixtures' summary of an array: mean, std, sum|x|, sum(x_i cos(0.1 i)), in float64."""
    x = np.asarray(x, np.float64).ravel()
    return np.array([x.mean(), x.std(), np.abs(x).sum(), (x * np.cos(0.1 * np.arange(x.size))).sum()])
