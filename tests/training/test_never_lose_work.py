"""Training that is stopped, killed, out of disk or given nonsense: what a user's run survives, through the command."""

import contextlib
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import shapes
from instancevg_jax import checkpoint, train
from instancevg_jax.checkpoint import load_model, save_checkpoint
from instancevg_jax.errors import InputError
from instancevg_jax.runtime import command_line
from instancevg_jax.training import loop
from instancevg_jax.training.log import RunLog
from instancevg_jax.training.stop import Terminated, Termination
from tests.test_train import SMALL

# one schedule whatever the number of steps: one compilation for most of these tests
FAST = [*SMALL, "--config.train.log_every=2", "--config.data.num_eval_examples=8", "--config.optim.schedule=step"]
COMMAND = [sys.executable, "-m", "instancevg_jax.train", *FAST]


def arguments(workdir, steps: int, *more: str) -> list[str]:
    return [f"--workdir={workdir}", f"--config.train.num_steps={steps}", *more]


def last_state(workdir: Path, step: int):
    """All leaves of a saved state."""
    return ocp.StandardCheckpointer().restore((workdir / "state" / str(step) / "state").absolute())


def assert_same_run(one: Path, other: Path, step: int) -> None:
    """Every leaf of both states is bit-equal."""
    a, b = (jax.tree_util.tree_leaves_with_path(last_state(w, step)) for w in (one, other))
    assert [path for path, _ in a] == [path for path, _ in b]
    for (path, x), (_, y) in zip(a, b, strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=jax.tree_util.keystr(path))


def wait_for(path: Path, process: subprocess.Popen, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, f"ended with {process.returncode} before {path} was there"
        assert time.monotonic() < end, f"no {path} after {seconds} s"
        time.sleep(0.02)


def test_sigterm_saves_and_ends_well_and_the_rest_is_bit_equal(tmp_path):
    """Muon, averages and dropout are on: all that a state can hold takes part."""
    more = ["--config.optim.name=muon", "--config.train.ema_decay=0.9", "--config.model.head_dropout=0.1"]
    train.main([*FAST, *more, *arguments(tmp_path / "whole", 40)])
    parts = tmp_path / "parts"
    command = [*COMMAND, *more, *arguments(parts, 40)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 4/"):
            process.send_signal(signal.SIGTERM)
            break
    printed = process.stdout.read()
    assert process.wait() == 0
    assert "stopped by a signal" in printed
    stopped = newest(parts)
    assert 4 <= stopped < 40
    train.main([*FAST, *more, *arguments(parts, 40)])
    assert_same_run(tmp_path / "whole", parts, 40)
    starts = [json.loads(line) for line in (parts / "starts.jsonl").read_text().splitlines()]
    assert [start["after_step"] for start in starts] == [0, stopped]
    assert "jax" in starts[0]["packages"]
    assert f"--workdir={parts}" in starts[0]["command"]


@pytest.mark.slow
def test_sigterm_during_an_evaluation_ends_it_and_it_is_made_later(tmp_path):
    more = ["--config.train.eval_every=2", "--config.data.num_eval_examples=1000000"]
    process = subprocess.Popen([*COMMAND, *more, *arguments(tmp_path, 4)], stdout=subprocess.PIPE, text=True)
    wait_for(tmp_path / "checkpoint", process)
    process.send_signal(signal.SIGTERM)
    printed = process.communicate()[0]
    assert process.returncode == 0
    assert "stopped by a signal; the same command resumes from step 2" in printed
    train.main([*FAST, "--config.train.eval_every=2", *arguments(tmp_path, 4)])
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["group"] == "val" and "model" not in row] == [2, 4]


def test_a_signal_is_not_lost_where_a_library_swallows_an_exception():
    """As JAX does if its cache of compiled programs fails, and Python itself in a finalizer."""
    with Termination() as termination:
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        with pytest.raises(Terminated):
            termination.check()


def test_a_run_resumes_with_another_rate_but_not_with_another_batch(tmp_path, capsys):
    train.main([*FAST, *arguments(tmp_path, 2)])
    with pytest.raises(InputError, match=r"another run: its train.batch_size is 4, not 8; choose another --workdir"):
        train.main([*FAST, "--config.train.batch_size=8", *arguments(tmp_path, 4)])
    train.main([*FAST, "--config.optim.clip_norm=0.5", *arguments(tmp_path, 4)])
    assert "changed since the last start: optim.clip_norm is 0.5, was 1.0" in capsys.readouterr().out
    assert newest(tmp_path) == 4


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_killed_twenty_times_at_random_moments(tmp_path):
    """kill -9, often in the middle of a save (every step is saved); in the end nothing differs from a run left alone."""
    steps, rng = 300, random.Random(0)
    more = ["--config.train.checkpoint_every=1", "--config.train.keep_checkpoints=2"]
    killed, during_save, workdir = 0, 0, tmp_path / "killed"
    while killed < 20:
        process = subprocess.Popen([*COMMAND, *more, *arguments(workdir, steps)], stdout=subprocess.DEVNULL)
        before = newest(workdir)
        while newest(workdir) <= before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        assert process.poll() is None, f"ended with {process.returncode} at step {newest(workdir)}"
        process.kill()
        process.wait()
        killed += 1
        during_save += any("tmp" in p.name for p in (workdir / "state").iterdir())
    assert during_save, "no kill hit a save"
    end = newest(workdir) + 5
    train.main([*FAST, *arguments(workdir, end)])
    train.main([*FAST, *arguments(tmp_path / "whole", end)])
    assert_same_run(tmp_path / "whole", workdir, end)
    assert not (workdir / "damaged").exists()


def newest(workdir: Path) -> int:
    """The step of the last whole state, 0 without one."""
    folder = workdir / "state"
    return max((int(p.name) for p in folder.iterdir() if p.name.isdecimal()), default=0) if folder.is_dir() else 0


def test_a_full_disk_is_one_line_and_earlier_states_stay(tmp_path):
    """A limit on file sizes in place of a full disk: the write fails half-way in the background."""
    train.main([*FAST, *arguments(tmp_path / "run", 2)])
    limited = f"ulimit -f 60; exec {' '.join(COMMAND)} {' '.join(arguments(tmp_path / 'run', 4))}"
    result = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    errors = re.findall("error: .*", result.stderr)  # wherever in a line: once none began with it; why was not found
    assert len(errors) == 1, result.stderr
    assert re.search("was not (saved|written)", errors[0])
    train.main([*FAST, *arguments(tmp_path / "run", 4)])
    assert newest(tmp_path / "run") == 4


def test_a_log_on_a_full_disk(tmp_path):
    """A limit on file sizes in place of a full disk: no line is left half-written, and nothing waits for a dead thread."""
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with RunLog(tmp_path) as log:
        log.scalars(1, "train", {"loss": 1.0})
        written = (tmp_path / "metrics.jsonl").read_text()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(written) + 10, hard))
        try:
            with pytest.raises(InputError, match=r"metrics\.jsonl: a line was not written \("):
                log.scalars(2, "train", {"loss": 1.0})
            for _ in range(20):
                with pytest.raises(InputError, match="the log for TensorBoard was not written"):
                    log.picture(2, "val/0", noise)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "metrics.jsonl").read_text() == written


def test_two_trainers_in_one_workdir(tmp_path):
    command = [*COMMAND, *arguments(tmp_path, 100_000)]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_for(tmp_path / "starts.jsonl", first)
        with pytest.raises(InputError, match="another trainer is running here"):
            train.main([*FAST, *arguments(tmp_path, 10)])
    finally:
        first.kill()
        first.wait()


@pytest.mark.parametrize("action", ["stop", "skip"])
def test_bad_steps_change_nothing_and_are_written_down(tmp_path, capsys, action):
    """A limit that every loss passes: nothing is learned, and each batch is named."""
    limit = ["--config.train.loss_limit=0.001", f"--config.train.bad_steps={action}"]
    if action == "stop":
        with pytest.raises(InputError, match=r"step 1 has loss .* its batch is named in .*bad_steps.jsonl"):
            train.main([*FAST, *limit, *arguments(tmp_path, 4)])
    else:
        train.main([*FAST, *limit, *arguments(tmp_path, 4)])
        train.main([*FAST, *arguments(tmp_path / "other", 1)])
        state = last_state(tmp_path, 4)
        assert int(state["step"]) == 4
        assert not np.any(jax.tree.leaves(state["stats"])[0])
        assert "skipped, its batch is named" in capsys.readouterr().out
        names = ["train basic 4", "train basic 5", "train basic 6", "train basic 7"]
        rows = [json.loads(line) for line in (tmp_path / "bad_steps.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == [1, 2, 3, 4]
        assert rows[1]["items"] == names


def test_not_finite_is_bad(tmp_path):
    """A learning rate that no network survives: the run stops, and what was saved before is still finite."""
    much = ["--config.optim.learning_rate=1e30", "--config.optim.warmup_steps=0", "--config.optim.clip_norm=0"]
    with pytest.raises(InputError, match=r"has loss (nan|inf)"):
        train.main([*FAST, *much, *arguments(tmp_path, 10)])


def test_best_checkpoint_profile_and_pictures(tmp_path, capsys):
    more = ["--config.train.eval_every=2", "--config.train.best_metric=T_acc"]
    train.main([*FAST, *more, *arguments(tmp_path, 6), "--profile=0"])
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    validated = {row["step"]: row for row in rows if row["group"] == "val" and "model" not in row}
    assert set(validated) == {2, 4, 6}
    for folder, metric in (("best", "T_acc"), ("best_detection", "F1"), ("best_segmentation", "cIoU")):
        best = json.loads((tmp_path / folder / "provenance.json").read_text())
        scores = {step: row[metric] for step, row in validated.items()}
        assert best["best"]["metric"] == metric
        assert best["best"]["value"] == max(scores.values())
        assert best["step"] == min(step for step, score in scores.items() if score == max(scores.values()))
        (final,) = [row for row in rows if folder in row.get("model", "").split(", ")]
        assert (final["step"], final["group"], final[metric]) == (best["step"], "val", max(scores.values()))
    load_model(tmp_path / "best")
    assert "memory" in capsys.readouterr().out
    events = b"".join(p.read_bytes() for p in (tmp_path / "tensorboard").iterdir())
    assert b"val/0" in events
    assert b"PNG" in events


@pytest.mark.slow
def test_a_validation_whose_best_model_was_not_saved_is_repeated(tmp_path, monkeypatch):
    """The disk is full when the first validation keeps its second best model."""

    def save(directory: Path, *args: Any, **options: Any) -> None:
        if directory.name == "best_detection":
            raise InputError("the disk is full")
        save_checkpoint(directory, *args, **options)

    validating = [*FAST, "--config.train.eval_every=2", *arguments(tmp_path, 2)]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_checkpoint", save)
        with pytest.raises(InputError, match="the disk is full"):
            train.main(validating)
    train.main(validating)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["group"] == "val" and "model" not in row] == [2]
    assert all((tmp_path / name).is_dir() for name in ("best", "best_detection", "best_segmentation"))


def test_profile_writes_a_trace(tmp_path):
    train.main([*FAST, *arguments(tmp_path, 13), "--profile=2"])
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    with pytest.raises(InputError, match="--profile 4 needs 14 steps, 10 of them to warm up; the run has 13"):
        train.main([*FAST, *arguments(tmp_path, 13), "--profile=4"])
    with pytest.raises(InputError, match="argument --profile: invalid int value: 'many'"):
        train.main([*FAST, *arguments(tmp_path, 13), "--profile=many"])


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("--config.train.bad_steps=ignore", "train.bad_steps is 'ignore'"),
        ("--config.train.log_every=0", "train.log_every is 0"),
        ("--config.train.checkpoint_dtype=int8", "train.checkpoint_dtype is 'int8'"),
        ("--config.eval.task=rec", "eval.task is 'rec'"),
        ("--config.eval.resolution=full", "eval.resolution is 'full'"),
        ("--config.eval.batch_size=0", "eval.batch_size is 0"),
        ("--config.data.eval_splits=('vall',)", "'vall'"),
        ("--config.data.num_eval_examples=0", "data.eval_splits: split 'val' of 'shapes' is infinite"),
        ("--config.train.best_metric=gIuO", "train.best_metric is 'gIuO'; expected one of gIoU, cIoU"),
        ("--config.train.ema_decay=1.5", "train.ema_decay is 1.5; expected 0 to 1"),
        ("--config.train.eval_every=-1", "train.eval_every is -1; expected at least 0"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(tmp_path, argument, says):
    with pytest.raises(InputError, match=says):
        train.main([*FAST, argument, *arguments(tmp_path / "run", 4)])
    assert not (tmp_path / "run").exists()


def test_states_are_saved_by_default_and_a_killed_run_loses_at_most_a_tenth(tmp_path, monkeypatch, capsys):
    """Data without an end has no epochs. The run ends between two saved states, as by SIGKILL."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("instancevg_jax.training.steps.StepReport.write", killed)
    with pytest.raises(KeyboardInterrupt):
        train.main([*FAST, *arguments(tmp_path, 40), "--config.train.log_every=11"])
    assert newest(tmp_path) == 8
    assert "40 steps, batch size 4 (4 per device), saving every 4 steps, no validation" in capsys.readouterr().out


def test_training_works_in_a_thread_and_takes_a_batch_size_per_device(tmp_path):
    """As in a notebook or a server, where Python allows no signal handlers."""
    overrides = [argument for argument in FAST if argument.startswith("--config.")]
    config = command_line.override(shapes.get_config(), [*overrides, "--config.train.batch_size_per_device=4"])
    config.train.batch_size, config.train.num_steps = 12, 2
    with ThreadPoolExecutor() as pool:
        results = pool.submit(loop.train, config, tmp_path).result()
    assert results is not None
    assert set(results) == {"val"}
    assert newest(tmp_path) == 2
    assert json.loads((tmp_path / "config.json").read_text())["train"]["batch_size"] == 4 * jax.device_count()


def test_a_system_without_file_locks_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(InputError, match="file locks need Linux or macOS; on Windows, use WSL"):
        train.main([*FAST, *arguments(tmp_path, 2)])
