"""Compiled programs are kept between tests, of this run and the next, commands included: compiling is most of the suite's time."""

import os

from tests import oracle

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(oracle.HERE.parent / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
