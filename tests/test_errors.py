"""How every command ends on what can go wrong outside of it: one line on stderr, a fixed exit status, no traceback."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from instancevg_jax.__main__ import COMMANDS
from instancevg_jax.errors import InputError, explain, one_line, run_command
from instancevg_jax.files import write_atomically
from tests.data_pipelines.checking.run import own, write_lines
from tests.data_pipelines.make import picture

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (InputError("a.json: bad"), "a.json: bad"),
        (OSError(28, "No space left on device", "out/a"), "out/a: No space left on device"),
        (OSError(30, "Read-only file system", "/a"), "/a: Read-only file system"),
        (PermissionError(13, "Permission denied", b"/a"), "/a: Permission denied"),
        (OSError(36, "File name too long", "aaa"), "aaa: File name too long"),
        (OSError(28, "No space left on device"), "output: No space left on device"),
        (MemoryError(), "out of memory (MemoryError); use smaller pictures, a smaller batch or fewer workers"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore"),
            "9 bytes.); lower train.ba",
        ),
        (jax.errors.JaxRuntimeError("INTERNAL: oops"), ""),
        (ModuleNotFoundError("No module named 'grain'", name="grain"), "run: pip install 'instancevg_jax[train]'"),
        (ModuleNotFoundError("No module named 'x'", name="x"), ""),
        (ValueError("a fault of this program"), ""),
    ],
)
def test_what_the_user_can_do_something_about(error: Exception, message: str):
    assert message in explain(error)
    assert bool(message) == bool(explain(error))


@pytest.mark.parametrize(
    ("error", "status"), [(InputError("two\nlines"), 2), (KeyboardInterrupt(), 130), (MemoryError("x"), 2)]
)
def test_the_exit_status(error: BaseException, status: int, capsys: pytest.CaptureFixture[str]):
    before = signal.getsignal(signal.SIGINT)

    def main():
        raise error

    try:
        with pytest.raises(SystemExit) as exit_info:
            run_command(main)
    finally:
        signal.signal(signal.SIGINT, before)
    assert exit_info.value.code == status
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_faults_of_the_program_keep_their_traceback():
    def main():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command(main)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures and records of them, one of which has characters that few consoles know."""
    folder = tmp_path_factory.mktemp("data")
    for i in range(3):
        picture(folder / "images", f"{i}.jpg")
    write_lines(
        folder / "own.jsonl", *(own(f"{i}.jpg", "a dög 龍", box=[1, 2, 30, 30]) for i in range(3)), own("龍.jpg")
    )
    return folder


def check_command(data: Path) -> list[str]:
    return ["check", "custom", "--annotations", f"{data}/own.jsonl", "--images", f"{data}/images"]


def start(command: list[str], stdout: Any, environment: dict[str, str] | None = None) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "instancevg_jax", *command],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONUNBUFFERED": "",
            **(environment or {}),
        },  # else argparse hides that --help is not written
        stdout=stdout,
    )


def assert_one_line(err: str) -> None:
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1, err


@pytest.mark.parametrize("name", COMMANDS)
def test_help_on_a_full_disk_and_a_closed_pipe(name: str):
    if name in ("reproduce", "serve"):
        pytest.importorskip(COMMANDS[name][0])
    with open("/dev/full", "w") as full:
        process = start([name, "--help"], stdout=full)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert_one_line(err)
    reading, writing = os.pipe()
    os.close(reading)
    process = start([name, "--help"], stdout=writing)
    os.close(writing)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (141, "")


def test_any_console_can_show_any_name(data: Path):
    for encoding in ("ascii", "latin-1"):
        process = start(check_command(data), subprocess.PIPE, {"PYTHONIOENCODING": encoding})
        out, err = process.communicate(timeout=120)
        assert process.returncode == 1
        assert "Traceback" not in err
        assert "\\u9f8d.jpg" in out


INTERRUPTED = """
import os, signal, sys, threading
from instancevg_jax.__main__ import console
delay, *sys.argv = float(sys.argv[1]), "instancevg", *sys.argv[2:]
threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)).start()
console()
"""


@pytest.mark.parametrize("delay", [0.01, 0.1, 0.3, 0.6])
def test_ctrl_c_at_any_moment_while_modules_load_too(data: Path, delay: float):
    command = [sys.executable, "-c", INTERRUPTED, str(delay), *check_command(data)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    if done.returncode != 1:  # 1: it had ended before
        assert done.returncode in (130, -signal.SIGINT)  # the latter by Python itself, where exec() was interrupted
        assert done.stderr.endswith("error: interrupted\n")


def test_a_full_disk_while_preparing(data: Path, tmp_path: Path):
    """By the limit on the size of files, which fails writes as a full disk does."""
    records = [own(f"{i % 3}.jpg", f"dog {i}", box=[1, 2, 30, 30]) for i in range(3)]
    path = write_lines(tmp_path / "own.jsonl", *records)
    command = f"import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); \
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024)); sys.argv = ['instancevg', 'prepare', 'custom', '--annotations', \
{str(path)!r}, '--images', {str(data / 'images')!r}, '--data-dir', {str(tmp_path / 'out')!r}]; \
from instancevg_jax.__main__ import console; console()"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert_one_line(done.stderr)
    assert f"{tmp_path}/out" in done.stderr
    assert not (tmp_path / "out/pictures").exists()


@pytest.mark.parametrize("name", ["x" * 300, "/dev/null/x", "/proc/x"])
@pytest.mark.parametrize("flag", ["--images", "--annotations", "--fix", "--list", "--draw", "--data-dir"])
def test_names_that_cannot_be(data: Path, flag: str, name: str, capsys: pytest.CaptureFixture[str], monkeypatch):
    name += ".jsonl" if flag == "--fix" else ""
    command = ["prepare" if flag == "--data-dir" else "check", *check_command(data)[1:], flag, name]
    monkeypatch.setattr("sys.argv", ["instancevg", *command])
    from instancevg_jax.__main__ import console

    with pytest.raises(SystemExit) as exit_info:
        console()
    assert exit_info.value.code == 2
    assert_one_line(capsys.readouterr().err)


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_from_the_start(data: Path, tmp_path: Path, closed: str):
    command = " ".join([sys.executable, "-m", "instancevg_jax", *check_command(data), "--list", str(tmp_path / "list")])
    done = subprocess.run(f"exec {command} {closed}", shell=True, cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 1
    assert "missing picture" in (tmp_path / "list").read_text()
    assert not done.stderr


def test_files_are_written_to_pipes_and_through_links(tmp_path: Path):
    os.mkfifo(pipe := tmp_path / "pipe")
    reader = subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE)
    write_atomically(pipe, b"content")
    assert reader.communicate(timeout=60)[0] == b"content"
    assert pipe.is_fifo()
    (link := tmp_path / "link").symlink_to("folder/target")
    write_atomically(link, b"content")
    assert (link.is_symlink(), (tmp_path / "folder/target").read_bytes()) == (True, b"content")


def test_control_characters_do_not_reach_the_console():
    assert one_line("a\x1b[2J\r\nb\t\u202e龍é") == "a\\x1b[2J b \\u202e龍é"
