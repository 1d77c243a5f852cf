"""The error type for bad input, and how every command ends: with an exit status and, after an error, one line on stderr."""

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable

# packages that pip installs on request only -> what is asked for: pip install 'instancevg_jax[EXTRA]'
EXTRAS = {
    **dict.fromkeys(("array_record", "grain", "importlib_resources", "tensorboardX", "tensorflow_datasets"), "train"),
    **dict.fromkeys(("fastapi", "multipart", "prometheus_client", "uvicorn"), "web"),
    "flatbuffers": "export",
}


class InputError(ValueError):
    """Bad input from the user: a file, a key or a value. The message is one line that names it and what was expected."""


def first_line(error: BaseException) -> str:
    """The first line of a library's error message, at most 200 characters of it, for use within an `InputError`."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def one_line(text: str) -> str:
    """Text from a file or a command line for a console: without line ends, and with control characters as escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))


def run_command(main: Callable[[], None]) -> None:
    """Run the `main` of a command line.

    Exit status 2 and one line on stderr follow from an `InputError`, from an error of the operating system (a full or
    read-only disk, missing permission, a name that is too long), and from running out of memory, on the host or on the
    device; 130 and one line from Ctrl-C; 141, silently, from a pipe whose reader has gone, as in `command | head`. Any
    other exception is a fault of this program and keeps its traceback. Characters that the console's encoding lacks are
    printed as escapes.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed from the start; the next file to be opened would take its place
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        if hasattr(stream := getattr(sys, name), "reconfigure"):  # not so where a test has replaced it
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            main()
        finally:
            sys.stdout.flush()  # here, so that a full disk or a closed pipe is noticed
    except KeyboardInterrupt:
        _ignore_ctrl_c()  # a second Ctrl-C would interrupt the shutdown
        _leave("error: interrupted", 130)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_has_gone():
            _leave("", 141)
        cause = explain(error)
        if not cause:
            raise
        _leave(f"error: {one_line(cause)}", 2)
    finally:
        _ignore_ctrl_c()  # from here on, Ctrl-C would only add a traceback


def explain(error: BaseException) -> str:
    """The cause of an error in one line, if the user can do something about it; "" if it is a fault of this program."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
        return f"{error.name} is not installed; run: pip install 'instancevg_jax[{EXTRAS[error.name]}]'"
    if isinstance(error, OSError) and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}" if error.filename else f"output: {error.strerror}"
    if isinstance(error, MemoryError):
        return f"out of memory ({first_line(error)}); use smaller pictures, a smaller batch or fewer workers"
    if is_device_memory(error):
        return (
            f"out of memory on the device ({first_line(error)}); lower train.batch_size or eval.batch_size, raise "
            "train.accumulate_steps, set model.remat=blocks or model.compute_dtype=bfloat16, or use smaller pictures"
        )
    return ""


def _ignore_ctrl_c() -> None:
    if threading.current_thread() is threading.main_thread():  # only it may set handlers
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def is_device_memory(error: BaseException) -> bool:
    """Whether JAX reports that the device is out of memory. JAX is not imported for it."""
    return "RESOURCE_EXHAUSTED" in str(error) and any(c.__name__ == "JaxRuntimeError" for c in type(error).__mro__)


def _reader_has_gone() -> bool:
    """Whether standard output is a pipe whose reader has closed it."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return bool(poll.poll(0))


def _leave(message: str, status: int) -> None:
    """End the process. One of several exits at once: a normal shutdown waits for the others, which wait for this one."""
    if message:
        with contextlib.suppress(OSError):  # of a stderr that is closed
            print(message, file=sys.stderr, flush=True)
    try:
        sys.stdout.flush()
    except OSError:  # a full disk or a closed pipe; the interpreter would try again and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized():
        os._exit(status)
    sys.exit(status)
