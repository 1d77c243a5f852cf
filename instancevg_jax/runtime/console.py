"""Console output of commands."""

from instancevg_jax.runtime.sharding import is_first_process


def say(text: str) -> None:
    """Print a line without buffering, on the first process only."""
    if is_first_process():
        print(text, flush=True)


def duration(seconds: float) -> str:
    """Seconds as "42s", "3m20s" or "2h05m"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


def two_digits(rate: float) -> str:
    """A rate with two significant digits or as an integer: "131", "0.24"."""
    return f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"
