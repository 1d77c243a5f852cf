"""The one error type that a user's mistake raises, and how a command ends on it."""

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
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
