"""The C library's allocator."""

import ctypes
import gc
import sys


def release_freed_memory() -> None:
    """Return freed memory to the system, where the C library can (glibc). Compiling leaves hundreds of megabytes behind."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
