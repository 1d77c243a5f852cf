"""Compiled programs are kept between tests, of this run and the next: compiling is most of the suite's time."""

import jax

from tests import oracle

jax.config.update("jax_compilation_cache_dir", str(oracle.HERE.parent / ".pytest_cache" / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
