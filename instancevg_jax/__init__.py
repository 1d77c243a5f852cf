"""instancevg_jax: generalized visual grounding in JAX/Flax. Public names are imported on first use."""

from typing import TYPE_CHECKING, Any

from instancevg_jax.runtime.version import __version__

if TYPE_CHECKING:
    from instancevg_jax.answers.grounding import Grounding
    from instancevg_jax.answers.predictor import Predictor
    from instancevg_jax.checkpoint import load_model
    from instancevg_jax.config import Config
    from instancevg_jax.errors import InputError
    from instancevg_jax.models.instancevg import InstanceVG

__all__ = ["Config", "Grounding", "InputError", "InstanceVG", "Predictor", "__version__", "load_model"]

_HOMES = {
    "Config": "config",
    "Grounding": "answers.grounding",
    "InputError": "errors",
    "InstanceVG": "models.instancevg",
    "Predictor": "answers.predictor",
    "load_model": "checkpoint",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that commands answer --help without waiting for JAX."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """The public names, for tab completion."""
    return sorted({*globals(), *_HOMES})
