"""XLA's options for programs that take a few small steps: compiled in a quarter of the time or less, to slower code.

The suite's programs are compiled so, `XLA_FLAGS` unset, except in a run of the parity tests alone, which is how `make test` runs
them: those have the code that users have.
"""

from importlib.metadata import version

OPTIONS = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
# XLA ends the process at an option that it does not know, and this one is gone in 0.12.
if tuple(map(int, version("jaxlib").split(".")[:2])) <= (0, 10):
    OPTIONS["xla_cpu_use_fusion_emitters"] = False
FLAGS = " ".join(f"--{name}={str(value).lower()}" for name, value in OPTIONS.items())
