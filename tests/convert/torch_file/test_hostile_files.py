"""Files that attack the reader: each is refused in one line that says what was found, and nothing runs."""

import os
import pickle
import struct
import zipfile
import zlib

import numpy as np
import pytest

from convert.torch_file import zip_index
from convert.torch_file.reader import read_checkpoint, state_dict
from instancevg_jax.errors import InputError
from tests.convert.torch_file.archives import DATA, archive, call, number, numbers, state, storage, tensor, text

GOOD = {"0": np.arange(4, dtype=np.float32).tobytes()}


def refused(path, message: str) -> None:
    """The file raises InputError, in one line that names the file and contains `message`."""
    with pytest.raises(InputError, match=message) as error:
        state_dict(read_checkpoint(path))
    line = str(error.value)
    assert line.startswith(str(path))
    assert line.isprintable()
    assert len(line) < len(str(path)) + 400


class Runs:
    """Unpickled by Python, this creates a file."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


CODE = [
    (os.system, "posix.system"),
    (eval, "builtins.eval"),
    (exec, "builtins.exec"),
    (__import__, "builtins.__import__"),
    (getattr, "builtins.getattr"),
]


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(("function", "name"), CODE)
def test_call_of_a_function(tmp_path, monkeypatch, function, name, protocol):
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps({"weight": Runs(function, "touch owned")}, protocol=protocol)
    refused(archive(tmp_path / "x.pth", data, GOOD), f"found {name}, which is not plain data; nothing was run")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"(S'touch owned'\nios\nsystem\n.", "found os.system"),
        (b"(cos\nsystem\nS'touch owned'\no.", "found os.system"),
        (b"\x80\x04\x8c\x0ctorch._utils\x8c\x09os.system\x93.", "found torch._utils.os.system"),
        (b"\x80\x04\x8c\x08builtins\x8c\x10getattr.__call__\x93.", "found builtins.getattr.__call__"),
        (b"cimportlib\nimport_module\n(S'os'\ntR.", "found importlib.import_module"),
        (b"ctorch.hub\nload\n(S'os'\ntR.", "found torch.hub.load"),
        (b"ctorch.storage\n_load_from_bytes\n(S'os'\ntR.", "found torch.storage._load_from_bytes"),
        (b"cnumpy.testing._private.utils\nrunstring\n(S'os'\ntR.", "found numpy.testing._private.utils.runstring"),
        (b"ccopyreg\n_reconstructor\n(cos\nsystem\nN.", "found os.system"),
        (b"ccollections\ndefaultdict\n(cbuiltins\neval\ntR.", "found builtins.eval"),
        (b"cbuiltins\nlist\n(tR.", "found a call of builtins.list"),
        (b"cbuiltins\ntype\n(S'x'\n)}tR.", "found the type of something other than None"),
        (b"cbuiltins\ntype\n(I1\ntR.", "found the type of something other than None"),
        (b"ccopyreg\n_reconstructor\n(cbuiltins\ntype\ncbuiltins\ntype\nNtR.", "an object of an unknown class"),
        (b"c__builtin__\nxrange.__class__\n.", "found __builtin__.xrange|found builtins.xrange"),
        (b"cpathlib._local\nos\n.", "found pathlib._local.os"),
        (b"S'x'\n)R.", "found a call of a str"),
        (b"\x80\x02\x82\x01.", "the pickle operation EXT1"),
        (b"Pos.system\n.", "the pickle operation PERSID"),
        (b"\x80\x05\x97.", "the pickle operation NEXT_BUFFER"),
        (b"\x80\x04]\x8c\x01a\x93.", "found a name that is not text"),
    ],
)
def test_pickle_trick(tmp_path, monkeypatch, data, message):
    monkeypatch.chdir(tmp_path)
    refused(archive(tmp_path / "x.pth", data), message)
    legacy = tmp_path / "legacy.pth"
    legacy.write_bytes(b"\x80\x02" + data)
    refused(legacy, message)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"]" * 200_000 + b"a" * 199_999 + b".", "nested deeper than"),
        (b"(" * 100_000 + b"t" * 100_000 + b".", "nested deeper than"),
        (b"}" + text("k") + b"}" * 3 + b"sss.", "takes more from its stack|a dict key of type dict"),
        (b"\x8b" + struct.pack("<i", 100_000) + b"\x7f" * 100_000 + b".", "an integer of 799999 bits"),
        (b"I" + b"9" * 10_000 + b"\n.", "not a readable pickle"),
        (b"\x8e" + struct.pack("<Q", 2**62) + b"x.", "not a readable pickle"),
        (b"X\xff\xff\xff\xffx.", "not a readable pickle"),
        (b"g7\n.", "the value 7, which does not exist"),
        (b")" + b"0" * 2 + b".", "closes a list it never opened"),
        (b"}N}(tN", "not a readable pickle"),
        (b"}(NNs.", "takes more from its stack|key-value pairs"),
        (b"}(((" + b"N" * 17 + b"ttNu.", "a dict key of type tuple"),
        (b"}(" + b")" + b"\x85" * 17 + b"Nu.", "a dict key of type tuple"),
        (b"}((]tNu.", "a dict key of type list"),
        (b"}((" + text("x" * 200) + b"tNu.", "a dict key of type tuple with a text of 200"),
        (b"}(I%d\nNu." % 2**80, "a dict key of type int"),
        (b"]N(NNe.", "items appended to a NoneType"),
        (b"N(NNe.", "items appended to a NoneType"),
        (b"", "not a readable pickle"),
        (b"\xff", "not a readable pickle"),
    ],
)
def test_pickle_that_is_malformed_or_swollen(tmp_path, data, message):
    refused(archive(tmp_path / "x.pth", data), message)


def test_names_of_nested_tuples_cost_nothing(tmp_path):
    """2^60 leaves on 60 shared tuples: hashing or printing them would never end."""
    doubled = b"N\x85" + b"2\x86" * 60
    refused(archive(tmp_path / "key.pth", b"}" + doubled + b"Ns."), "a dict key of type tuple with more than 16 items")
    refused(archive(tmp_path / "pid.pth", doubled + b"Q."), "something other than a tensor's storage")
    refused(archive(tmp_path / "name.pth", doubled + b"2\x93."), "a name that is not text")
    refused(
        archive(tmp_path / "size.pth", state(tensor(where=storage()).replace(numbers((4,)), doubled, 1)), GOOD), "range"
    )


def test_copies_are_bounded(tmp_path):
    one = b"c_codecs\nencode\n" + text("x" * (1 << 20)) + b"q\x00" + text("latin1") + b"q\x01\x86R0"
    more = b"c_codecs\nencode\nh\x00h\x01\x86R" * 1000
    refused(archive(tmp_path / "x.pth", one + more + b"."), "calls that copy more than")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tensor(where=storage(count=5)), "storage 0 of 20 bytes whose record holds 16"),
        (tensor(where=storage(count=2**40)), "whose record holds 16"),
        (tensor(where=storage(count=-4)), "something other than a tensor's storage"),
        (tensor(where=storage(key="1")), "storage 1 is not in the archive"),
        (tensor(where=storage(key="../../../etc/passwd")), "is not in the archive"),
        (tensor(where=storage(kind="QuantumStorage")), "a tensor's storage of the unknown kind torch.QuantumStorage"),
        (tensor((5,)), "reaches beyond its storage"),
        (tensor((4,), (2,)), "reaches beyond its storage"),
        (tensor((2, 2), (2, 1), 1), "reaches beyond its storage"),
        (tensor((4,), (-1,), 3), "out of range"),
        (tensor((-4,)), "out of range"),
        (tensor(start=-1), "out of range"),
        (tensor((2**61,), (0,)), "a tensor of 9223372036854775808 bytes in a file of"),
        (tensor((2**63,), (0,)), "out of range"),
        (tensor((2**40, 2**40, 0), (1, 1, 1)), "an empty tensor of the shape"),
        (tensor((2, 2)), "2 sizes and 1 strides"),
        (tensor((1,) * 40, (1,) * 40), "40 sizes"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)R", "a tensor whose description makes no sense"),
        (b"ctorch._utils\n_rebuild_parameter\n(N\x89NtR", "a parameter that is not a tensor"),
        (b"ctorch._tensor\n_rebuild_from_type_v2\n(NNNNtR", "a tensor of an unknown class"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(" + tensor() + number(0) + b"))tR", "whose description makes no sense"),
        (text("os.system"), "weight in the state dict is a str|no state_dict with tensors"),
    ],
)
def test_tensor_that_lies(tmp_path, data, message):
    refused(archive(tmp_path / "x.pth", state(data), GOOD), message)


def test_state_dict_with_a_foreign_value_or_key(tmp_path):
    both = b"\x80\x02}" + text("weight") + tensor() + b"s"
    refused(archive(tmp_path / "value.pth", both + text("v") + text("x") + b"s.", GOOD), "v in the state dict is a str")
    for key in (text("a\x1b[31m\nb"), text("k" * 1000), number(7)):
        refused(archive(tmp_path / "key.pth", both + key + b"Ns.", GOOD), "is not a parameter's name")


def test_numpy_scalars_that_lie(tmp_path):
    for kind, data in (("f8", b"\0" * 4), ("O8", b"\0" * 8), ("V9", b"\0" * 9), ("b2", b"\0\0"), ("U99999999", b"")):
        dtype = b"cnumpy\ndtype\n" + text(kind) + b"\x89\x88\x87R"
        scalar = b"cnumpy.core.multiarray\nscalar\n" + dtype + b"C" + bytes([len(data)]) + data + b"\x86R"
        refused(archive(tmp_path / "x.pth", state(scalar)), "a numpy scalar of an unknown kind or size")


def test_compressed_record(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", state(tensor(where=storage(count=2**22))))
        file.writestr("a/data/0", b"\0" * 2**24)
    refused(path, "is compressed")


@pytest.mark.parametrize("name", ["../evil", "/etc/evil"])
def test_record_whose_name_points_elsewhere(tmp_path, name):
    """Names are looked up and never used as paths."""
    path = archive(tmp_path / "x.pth", state(tensor()), GOOD)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(name, b"x")
    refused(path, "other records than torch.save writes")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.pth"]


def test_records_doubled_foreign_or_missing(tmp_path):
    path = archive(tmp_path / "x.pth", state(tensor()), GOOD)
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("a/data/0", b"\1" * 16)
    refused(path, "two records named 'a/data/0'")
    refused(archive(tmp_path / "script.pth", state(tensor()), GOOD, **{"constants.pkl": b"."}), "a TorchScript program")
    refused(
        archive(tmp_path / "order.pth", state(tensor()), GOOD, byteorder=b"middle"),
        "the byte order b.middle.; expected little or big",
    )
    path = tmp_path / "none.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/model.bin", b"x")
    refused(path, "0 records called data.pkl")


def _patched(path, target, old: bytes, new: bytes, last: bool = False):
    """A copy of a file with one run of bytes replaced."""
    raw = path.read_bytes()
    at = raw.rfind(old) if last else raw.find(old)
    assert at >= 0
    target.write_bytes(raw[:at] + new + raw[at + len(old) :])
    return target


def test_directory_that_lies(tmp_path):
    path = archive(tmp_path / "x.pth", state(tensor()), GOOD)
    records = zipfile.ZipFile(path).infolist()
    first, final = records[0], records[-1]
    # sizes and offset of the last record, as its entry in the central directory stores them
    entry = struct.pack("<2L", 16, 16) + struct.pack("<H", len(final.filename))
    huge = struct.pack("<2L", 2**30, 2**30) + entry[8:]
    refused(_patched(path, tmp_path / "size.pth", entry, huge, last=True), "damaged or truncated")
    offset, zero = (
        struct.pack("<L", final.header_offset) + b"a/data/0",
        struct.pack("<L", first.header_offset) + b"a/data/0",
    )
    refused(_patched(path, tmp_path / "overlap.pth", offset, zero, last=True), "overlap")
    outside = struct.pack("<L", 2**31) + b"a/data/0"
    refused(_patched(path, tmp_path / "outside.pth", offset, outside, last=True), "Truncated file header")
    local = b"PK\3\4" + path.read_bytes()[final.header_offset + 4 : final.header_offset + 30] + b"a/data/0"
    renamed = local[:-1] + b"7"
    refused(_patched(path, tmp_path / "renamed.pth", local, renamed), "File name in directory")
    flag = b"PK\1\2" + path.read_bytes()[path.read_bytes().find(b"PK\1\2") + 4 :][:4] + b"\1"
    refused(_patched(path, tmp_path / "encrypted.pth", flag[:-1] + b"\0", flag), "is encrypted")


def test_records_that_overlap(tmp_path):
    """Two records share their bytes, each with a local header that agrees with the directory."""
    inner = b"PK\3\4" + struct.pack("<5H3L2H", 20, 0, 0, 0, 0, 0, 16, 16, 8, 0) + b"a/data/1" + b"\0" * 16
    path = archive(tmp_path / "x.pth", state(tensor()), {"0": inner, "1": b"\0" * 16})
    raw = path.read_bytes()
    records = {record.filename: record for record in zipfile.ZipFile(path).infolist()}
    inside = raw.find(inner)
    crc = struct.pack("<L", zlib.crc32(b"\0" * 16))
    old, new = (struct.pack("<L", at) + b"a/data/1" for at in (records["a/data/1"].header_offset, inside))
    assert crc in raw
    refused(_patched(path, tmp_path / "overlap.pth", old, new, last=True), "'a/data/0' and 'a/data/1' overlap")


@pytest.mark.parametrize("step", [13, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["layouts.pth", "legacy.pth"])
def test_truncation_at_any_byte(tmp_path, name, step):
    raw, path = (DATA / name).read_bytes(), tmp_path / "x.pth"
    for size in [*range(0, len(raw), step), len(raw) - 1]:
        path.write_bytes(raw[:size])
        with pytest.raises(InputError):
            state_dict(read_checkpoint(path))


def test_a_flipped_bit_of_a_record_is_noticed(tmp_path):
    raw, path = (DATA / "layouts.pth").read_bytes(), tmp_path / "x.pth"
    with (DATA / "layouts.pth").open("rb") as file:
        records = zip_index.read_index(file, "x")
    places = [place for record in records.values() for place in range(record.offset, record.offset + record.size)]
    assert len(places) > 500
    for place in places[::3]:
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1 << place % 8]) + raw[place + 1 :])
        with pytest.raises(InputError, match="Bad CRC-32"):
            read_checkpoint(path)


def test_legacy_file_that_lies(tmp_path):
    raw, path = (DATA / "legacy.pth").read_bytes(), tmp_path / "x.pth"
    path.write_bytes(raw + b"\0")
    refused(path, "1 bytes after the last storage")
    at = raw.rfind(struct.pack("<q", 24))  # the elements of the last storage but some
    path.write_bytes(raw[:at] + struct.pack("<q", 25) + raw[at + 8 :])
    refused(path, "whose record announces 25 elements")
    path.write_bytes(raw.replace(b"M\xe9\x03", b"M\xe8\x03"))
    refused(path, "an unknown version of torch's old layout")


def test_plain_data_calls_are_still_data(tmp_path):
    """What a file may call by name gives data whatever the arguments, or is refused."""
    for module, name, args in [
        ("collections", "OrderedDict", ("abc",)),
        ("__builtin__", "set", (7,)),
        ("_codecs", "encode", ("x", "rot13")),
        ("__builtin__", "complex", ("1",)),
        ("copy_reg", "_reconstructor", (1, 2, 3)),
    ]:
        refused(archive(tmp_path / "x.pth", call(module, name, *args)), "found .* something other than|unknown class")
