"""Saved states: whole or not there, read back bit for bit, damage seen, one trainer at a time."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instancevg_jax.errors import InputError
from instancevg_jax.training.resume import RunStates, fingerprint
from instancevg_jax.training.train_state import TrainState

DATA = {"next_index": 7}


def a_state(seed: int, width: int = 300) -> TrainState:
    values = jax.random.normal(jax.random.key(seed), (4, width))
    params = {"backbone": {"kernel": values, "bias": values[0].astype(jnp.bfloat16)}}
    return TrainState(jnp.int32(seed), params, {"mean": values[:, 0]}, (jnp.ones(3), {"count": jnp.int32(2)}), None)


def save(workdir, steps, keep=3):
    with RunStates(workdir, keep) as states:
        for step in steps:
            states.save(step, a_state(step), DATA)


def largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_round_trip_keeps_the_latest(tmp_path):
    save(tmp_path, [1, 2, 3], keep=2)
    assert sorted(p.name for p in (tmp_path / "state").iterdir()) == ["2", "3"]
    with RunStates(tmp_path, 2) as states:
        found = states.restore(a_state(0))
    assert found is not None
    state, data, step = found
    assert (data, step) == (DATA, 3)
    jax.tree.map(np.testing.assert_array_equal, state, a_state(3))


def test_nothing_saved(tmp_path):
    with RunStates(tmp_path, 2) as states:
        assert states.restore(a_state(0)) is None


@pytest.mark.parametrize("damage", ["truncated", "flipped", "removed", "description"])
def test_a_damaged_state_is_named_and_the_one_before_taken(tmp_path, capsys, damage):
    save(tmp_path, [1, 2])
    path = largest_file(tmp_path / "state" / "2" / "state")
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "removed":
        path.unlink()
    else:
        (tmp_path / "state" / "2" / "state" / "_METADATA").write_text("{")
    with RunStates(tmp_path, 3) as states:
        found = states.restore(a_state(0))
        assert found is not None
        assert found[2] == 1
        states.save(2, found[0], DATA)
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'state' / '2'} is damaged" in printed
    assert (tmp_path / "damaged" / "2.0").is_dir()
    assert (tmp_path / "state" / "2").is_dir()


def test_all_damaged_is_an_error_and_nothing_is_moved(tmp_path):
    save(tmp_path, [1])
    largest_file(tmp_path / "state" / "1" / "state").write_bytes(b"")
    with RunStates(tmp_path, 3) as states, pytest.raises(InputError, match="none of its 1 states can be read"):
        states.restore(a_state(0))
    assert (tmp_path / "state" / "1").is_dir()


def test_a_state_of_another_network_is_not_damage(tmp_path):
    save(tmp_path, [1])
    with (
        RunStates(tmp_path, 3) as states,
        pytest.raises(InputError, match=r"belongs to another run: its .* is \(300,\), not \(200,\)"),
    ):
        states.restore(a_state(0, width=200))
    assert (tmp_path / "state" / "1").is_dir()


def test_what_a_killed_write_left_is_cleared(tmp_path):
    save(tmp_path, [1])
    (tmp_path / "state" / "2.orbax-checkpoint-tmp").mkdir()
    save(tmp_path, [2])
    assert sorted(p.name for p in (tmp_path / "state").iterdir()) == ["1", "2"]


def test_a_second_trainer_is_refused(tmp_path):
    program = "import sys, pathlib; from instancevg_jax.training.resume import RunStates; "
    program += "RunStates(pathlib.Path(sys.argv[1]), 1)"
    with RunStates(tmp_path, 1):
        with pytest.raises(InputError, match="another trainer is running here"):
            RunStates(tmp_path, 1)
        second = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=False)
        assert "another trainer is running here" in second.stderr
    RunStates(tmp_path, 1).__exit__(None, None, None)


@settings(deadline=None)  # the first example compiles
@given(st.data())
def test_the_fingerprint_sees_every_bit(data):
    state = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.array([True, False]), "c": np.float16([1, 2])}
    name = data.draw(st.sampled_from(sorted(state)))
    changed = {**state, name: state[name].copy()}
    words = changed[name].view(np.uint8).reshape(-1)
    if name == "b":
        words[data.draw(st.integers(0, 1))] ^= 1
    else:
        words[data.draw(st.integers(0, words.size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert fingerprint(jax.tree.map(jnp.array, state)) != fingerprint(jax.tree.map(jnp.array, changed))
