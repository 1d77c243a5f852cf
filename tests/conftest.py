"""Compiled programs are kept between tests, of this run and the next, commands included: compiling is most of the suite's time."""

import os
from pathlib import Path

import pytest

from tests import oracle, quickly

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(oracle.HERE.parent / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")


def pytest_configure(config: pytest.Config) -> None:
    if {Path(name).name for name in config.args} != {"parity"}:
        os.environ.setdefault("XLA_FLAGS", quickly.FLAGS)
