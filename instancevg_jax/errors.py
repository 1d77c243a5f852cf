"""The one error type that a user's mistake raises, and how a command ends on it."""

import os
import sys
from collections.abc import Callable


class InputError(ValueError):
    """Bad input from the user: a file, a key or a value. The message is one line that names it and says what was expected."""


def first_line(error: Exception) -> str:
    """What a library's exception says, at most 200 characters of it, to stand within an `InputError`."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def run_command(main: Callable[[], None]) -> None:
    """Run a command line's `main`: an `InputError` becomes one line on stderr and exit status 2."""
    try:
        main()
    except InputError as error:
        _leave(f"error: {' '.join(str(error).split())}", 2)
    except KeyboardInterrupt:
        _leave("error: interrupted", 130)


def _leave(message: str, status: int) -> None:
    """End the process; one of several at once, since an orderly end waits for the others, and they for this one's work."""
    print(message, file=sys.stderr, flush=True)
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized():
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)
