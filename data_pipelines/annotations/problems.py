"""What a reader does about a record that it cannot read: an error at once, or kept for a table of them."""

from collections.abc import Iterator
from contextlib import contextmanager

from instancevg_jax.errors import InputError, first_line

# what values of the wrong kind or depth raise
MALFORMED = (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError, RecursionError)


class Problems:
    """Records that could not be read. `found` stays empty unless `keep` is set: then nothing is raised."""

    def __init__(self, keep: bool = False) -> None:
        """`keep`: go on with the next record."""
        self.keep = keep
        self.found: list[tuple[str, str]] = []  # (where, what is wrong)

    @contextmanager
    def at(self, where: str) -> Iterator[None]:
        """Around the reading of one record. Raises InputError, or keeps its message."""
        try:
            yield
        except MALFORMED as error:
            known = isinstance(error, InputError)
            message = str(error) if known else f"{where} is malformed ({type(error).__name__}: {first_line(error)})"
            if not self.keep:
                raise InputError(message) from error
            self.found.append((where, message))
