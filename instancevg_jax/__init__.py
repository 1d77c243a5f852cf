"""instancevg_jax: generalized visual grounding in JAX/Flax."""

from instancevg_jax.version import __version__

__all__ = ["__version__"]
