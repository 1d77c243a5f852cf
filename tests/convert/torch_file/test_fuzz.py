"""Mutated files: the reader answers or refuses, in bounded time and memory, whatever the bytes."""

import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convert.torch_file.reader import read_checkpoint, state_dict
from instancevg_jax.errors import InputError
from tests.convert.torch_file import archives
from tests.convert.torch_file.archives import DATA

SEEDS = [(DATA / name).read_bytes() for name in ("layouts.pth", "protocol4.pth", "training.pth", "legacy.pth")]
PICKLES = [
    zipfile.ZipFile(DATA / f"{name}.pth").read(f"{name}/data.pkl") for name in ("layouts", "protocol4", "training")
]
MAX_BYTES = 16 << 20  # what reading may allocate: the seeds have 10 kB

mutation = st.tuples(
    st.sampled_from(["set", "delete", "insert", "repeat", "move"]),
    st.floats(0, 1, exclude_max=True),
    st.floats(0, 1, exclude_max=True),
    st.binary(min_size=1, max_size=12),
)


def mutated(raw: bytes, mutations) -> bytes:
    for kind, first, second, data in mutations:
        at, to = int(first * len(raw)), int(second * len(raw))
        piece = raw[at : at + 1 + to % 64]
        if kind == "set":
            raw = raw[:at] + data + raw[at + len(data) :]
        elif kind == "delete":
            raw = raw[:at] + raw[at + len(piece) :]
        elif kind == "insert":
            raw = raw[:at] + data + raw[at:]
        elif kind == "repeat":
            raw = raw[:at] + piece * 50 + raw[at:]
        else:
            raw = raw[:to] + piece + raw[to:]
    return raw


def read_all(path) -> None:
    """Read every tensor, as a conversion would, or be refused; nothing else."""
    tracemalloc.start()
    message = ""
    try:
        for tensor in state_dict(read_checkpoint(path)).values():
            assert np.array(tensor).shape == tensor.shape
    except InputError as error:
        message = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert "\n" not in message
    assert peak < MAX_BYTES


def fuzz(examples: int):
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=examples, deadline=5000, suppress_health_check=quiet, derandomize=examples < 1000)


def check_file(tmp_path, raw, mutations):
    path = tmp_path / "x.pth"
    path.write_bytes(mutated(raw, mutations))
    read_all(path)


def check_pickle(tmp_path, raw, mutations):
    """The mutation reaches the pickle machine: the archive around it has right checksums."""
    storages = {str(i): bytes(range(96)) for i in range(4)}
    read_all(archives.archive(tmp_path / "x.pth", mutated(raw, mutations), storages))


FILES = (st.sampled_from(SEEDS), st.lists(mutation, min_size=1, max_size=4))
PICKLED = (st.sampled_from(PICKLES), st.lists(mutation, min_size=1, max_size=4))


@fuzz(200)
@given(*FILES)
def test_mutated_file(tmp_path, raw, mutations):
    check_file(tmp_path, raw, mutations)


@fuzz(200)
@given(*PICKLED)
def test_mutated_pickle(tmp_path, raw, mutations):
    check_pickle(tmp_path, raw, mutations)


@pytest.mark.slow
@fuzz(20_000)
@given(*FILES)
def test_mutated_file_for_long(tmp_path, raw, mutations):
    check_file(tmp_path, raw, mutations)


@pytest.mark.slow
@fuzz(20_000)
@given(*PICKLED)
def test_mutated_pickle_for_long(tmp_path, raw, mutations):
    check_pickle(tmp_path, raw, mutations)


@pytest.mark.slow
@fuzz(20_000)
@given(st.binary(max_size=400))
def test_any_bytes_as_a_pickle(tmp_path, raw):
    read_all(archives.archive(tmp_path / "x.pth", b"\x80\x02" + raw))
