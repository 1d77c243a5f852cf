"""The bounded pickle reader by itself. tests/convert/torch_file attacks it through checkpoint files."""

import io
import os
import pickle
import struct
import subprocess
import tracemalloc
from argparse import Namespace

import numpy as np
import pytest

from instancevg_jax.errors import InputError
from instancevg_jax.pickles import machine
from instancevg_jax.pickles.values import Inert

REFERENCES = [
    {"ref_id": 1, "ann_id": [7, -1], "sentences": [{"sent": "der Bär", "tokens": ("a", "b"), "score": 2.5}], "x": None},
    {"ref_id": 2**40, "split": b"val", "kinds": {1, 2}, "flag": True, "box": [1.0, -2.0], "nothing": ()},
]


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_of_every_protocol(protocol):
    assert machine.load_tree(pickle.dumps(REFERENCES, protocol), "x") == REFERENCES


def test_what_python_2_wrote():
    """cPickle.dumps([{'sent': 'caf\\xe9 "a"', 'id': 7L, 'n': numpy.int64(3)}]) with protocols 0 and 2."""
    text = b"(lp1\n(dp2\nS'sent'\np3\nS'caf\\xe9 \"a\"'\np4\nsS'id'\np5\nL7L\nsa."
    assert machine.load_tree(text, "x") == [{"sent": 'café "a"', "id": 7}]
    assert machine.load_tree(b"\x80\x02]q\x01}q\x02U\x04sentq\x03U\x05caf\xe9\nq\x04sa.", "x") == [{"sent": "café\n"}]


def test_numpy_scalars_are_values():
    assert machine.load_tree(pickle.dumps([np.int64(5), np.float32(0.5), np.bool_(True)]), "x") == [5, 0.5, True]


def test_unknown_classes_are_records():
    """Whatever a training script puts into its file: Lightning's hyper-parameters, a config, its own enumeration."""
    name = b"clightning_utilities.core.attribute_dict\nAttributeDict\n)\x81}" + b"X\x02\x00\x00\x00lrK\x01sb."
    found = machine.load(io.BytesIO(b"\x80\x02" + name), "x")
    assert isinstance(found, Inert)
    assert (found.name, found.state) == ("lightning_utilities.core.attribute_dict.AttributeDict", {"lr": 1})
    assert machine.load(io.BytesIO(pickle.dumps(Namespace(a=1))), "x").state == {"a": 1}


@pytest.mark.parametrize("function", [os.system, eval, subprocess.Popen, subprocess.call, print, os.environ.__class__])
def test_functions_and_programs_are_refused(function, tmp_path):
    class Call:
        def __reduce__(self):
            return function, (f"touch {tmp_path}/owned",)

    for protocol in (0, 2, 4):
        with pytest.raises(InputError, match=r"x: found .*, which is not plain data; nothing was run"):
            machine.load_tree(pickle.dumps([Call()], protocol), "x")
    assert not list(tmp_path.iterdir())


def itself() -> bytes:
    items: list = []
    items.append({"a": items})
    return pickle.dumps(items)


HOSTILE = {
    "memo index": (b"N" + b"r" + struct.pack("<I", 2**30) + b".", None),
    "nested tuple as key": (b"}N" + b"\x85" * 1000 + b"Ns.", "a dict key of type tuple"),
    "nested tuple": (b"N" + b"\x85" * 1000 + b".", "nested deeper than 100"),
    "contains itself": (itself(), "contains itself"),
    "billion laughs": (b"]" + b"2\x86" * 60 + b".", "more than 50000000 items"),
    "huge text": (b"X\xff\xff\xff\x7fx.", "damaged"),
    "huger text": (b"\x8d" + struct.pack("<Q", 2**62) + b"x.", "damaged"),
    "a long number": (b"I" + b"9" * 5000 + b"\n.", "damaged"),
    "a longer number": (b"\x8b" + struct.pack("<i", 100_000) + b"\x7f" * 100_000 + b".", "an integer of 799999 bits"),
    "outside": (b"K\x01Q.", "a reference to something outside"),
    "no end": (b"]]]", "ends too early"),
    "empty": (b"", "ends too early"),
    "no pickle": (b"[1, 2]", "damaged|takes more from its stack"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_cost_nothing(name):
    data, message = HOSTILE[name]
    tracemalloc.start()
    try:
        if message is None:
            assert machine.load_tree(data, "x") is None
        else:
            with pytest.raises(InputError, match=message) as error:
                machine.load_tree(data, "x")
            assert "\n" not in str(error.value)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("limit", "data", "message"),
    [
        ("MAX_OPCODES", b"N" + b"2" * 1000 + b".", "more than 1000 operations"),
        ("MAX_CONTAINERS", b"]" * 1001 + b".", "more than 1000 containers"),
        ("MAX_CONTAINERS", b"N" + b"\x85" * 1001 + b".", "more than 1000 containers"),
        ("MAX_CONTAINERS", b"(" * 1001 + b".", "more than 1000 containers"),
        ("MAX_ITEMS", pickle.dumps([list(range(10))] * 101), "more than 1000 items"),
    ],
)
def test_limits(monkeypatch, limit, data, message):
    monkeypatch.setattr(machine, limit, 1000)
    with pytest.raises(InputError, match=message):
        machine.load_tree(data, "x")
