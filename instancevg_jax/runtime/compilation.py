"""Keeps compiled programs on disk, so that a command compiles once per machine."""

import os
from pathlib import Path

import jax

MAX_BYTES = 2 * 10**9  # the programs that were not used for the longest time are deleted first


def cache_directory() -> Path:
    """The folder of compiled programs and converted weights.

    $INSTANCEVG_JAX_CACHE, or else the folder instancevg_jax in $XDG_CACHE_HOME (default: ~/.cache).
    """
    if named := os.environ.get("INSTANCEVG_JAX_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "instancevg_jax"


def keep_compiled_programs() -> None:
    """Use JAX's persistent compilation cache, of at most `MAX_BYTES`. Called by every command.

    JAX's own settings come first: JAX_COMPILATION_CACHE_DIR names another folder, JAX_ENABLE_COMPILATION_CACHE=false turns the
    cache off.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "xla"))
        jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
