"""Values of command lines, checked."""

from instancevg_jax.errors import InputError


def at_least_one(value: int, flag: str) -> int:
    """The value of `flag`. Raises InputError where it is less than 1."""
    if value < 1:
        raise InputError(f"{flag} is {value}; expected at least 1")
    return value
