"""The records of a stored (uncompressed) zip file: where each lies, checked so that no two readings of it can differ.

torch writes its checkpoints as such archives. Compressed, encrypted, overlapping, doubled and outward-pointing records
are refused, as is a directory at the file's end that does not add up. Source: PKWARE's APPNOTE.TXT, 4.3 and 4.4.
"""

import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO, NoReturn

from instancevg_jax.errors import InputError

END = struct.Struct("<4s4H2LH")
LOCATOR = struct.Struct("<4sLQL")
END64 = struct.Struct("<4sQ2H2L4Q")
CENTRAL = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")

ENCRYPTED, SIZES_FOLLOW = 0x1, 0x8  # bits of a record's flags
MAX_DIRECTORY_BYTES = 64 << 20
CHUNK = 1 << 22


@dataclass(frozen=True)
class Record:
    """A run of bytes of the file."""

    offset: int
    size: int
    crc: int
    header: int  # where its local header begins


def read_index(file: BinaryIO, source: str) -> dict[str, Record]:
    """Every record by name. `source` names the file in errors. Raises InputError on anything torch would not write."""
    directory, limit, count = _directory(file, source)
    records: dict[str, Record] = {}
    position = 0
    while position < len(directory):
        name, entry, position = _central_entry(directory, position, source)
        if name in records:
            _refuse(source, f"two records named {name!r}")
        records[name] = _with_offset(file, entry, name, limit, source)
    if len(records) != count:
        _refuse(source, f"its directory announces {count} records and holds {len(records)}")
    end, before = 0, ""
    for name, record in sorted(records.items(), key=lambda item: item[1].header):
        if record.header < end:
            _refuse(source, f"the records {before!r} and {name!r} overlap")
        end, before = record.offset + record.size, name
    return records


def check_crcs(file: BinaryIO, records: dict[str, Record], source: str) -> bool:
    """Read every record once and compare checksums. False for a file that was saved without any (all are 0)."""
    if all(record.crc == 0 for record in records.values()):
        return False
    for name, record in records.items():
        file.seek(record.offset)
        crc, left = 0, record.size
        while left:
            chunk = file.read(min(CHUNK, left))
            if not chunk:
                _refuse(source, f"it ends inside the record {name!r}")
            crc, left = zlib.crc32(chunk, crc), left - len(chunk)
        if crc != record.crc:
            _refuse(
                source, f"the record {name!r} has checksum {crc:08x}, not {record.crc:08x} as written: it is corrupt"
            )
    return True


def _refuse(source: str, what: str) -> NoReturn:
    raise InputError(f"{source}: {what}; expected a checkpoint as torch.save writes it")


def _read(file: BinaryIO, offset: int, size: int, source: str) -> bytes:
    if offset < 0:
        _refuse(source, "a damaged or truncated archive")
    file.seek(offset)
    data = file.read(size)
    if len(data) != size:
        _refuse(source, "a damaged or truncated archive")
    return data


def _directory(file: BinaryIO, source: str) -> tuple[bytes, int, int]:
    """The central directory's bytes, where it begins, and how many records it should hold."""
    end = file.seek(0, 2) - END.size
    signature, disk, first_disk, here, count, size, offset, comment = END.unpack(_read(file, end, END.size, source))
    if signature != b"PK\5\6" or comment:
        _refuse(source, "no archive directory at its end: a truncated download?")
    if end >= LOCATOR.size and _read(file, end - LOCATOR.size, 4, source) == b"PK\6\7":
        _, _, end64, _ = LOCATOR.unpack(_read(file, end - LOCATOR.size, LOCATOR.size, source))
        if end64 + END64.size + LOCATOR.size != end:
            _refuse(source, "its zip64 directory is not where it should be")
        fields = END64.unpack(_read(file, end64, END64.size, source))
        pairs = zip((here, count, size, offset), fields[6:], strict=True)
        if fields[0] != b"PK\6\6" or any(a != b and a not in (0xFFFF, 0xFFFFFFFF) for a, b in pairs):
            _refuse(source, "its two directories contradict each other")
        disk, first_disk, here, count, size, offset = fields[4:]
        end = end64
    if disk or first_disk or here != count or offset + size != end or size > MAX_DIRECTORY_BYTES:
        _refuse(source, f"an archive directory of {size} bytes at {offset} that should end at {end}")
    return _read(file, offset, size, source), offset, count


def _central_entry(directory: bytes, position: int, source: str) -> tuple[str, tuple[int, ...], int]:
    """Name, (flags, crc, size, header offset) of the entry at `position`, and where the next one begins."""
    if position + CENTRAL.size > len(directory):
        _refuse(source, "a damaged archive directory")
    fields = CENTRAL.unpack_from(directory, position)
    flags, method, crc, stored, size, header = fields[3], fields[4], fields[7], fields[8], fields[9], fields[16]
    name_size, extra_size, comment_size = fields[10:13]
    start = position + CENTRAL.size
    stop = start + name_size + extra_size + comment_size
    if fields[0] != b"PK\1\2" or stop > len(directory):
        _refuse(source, "a damaged archive directory")
    name = _safe_name(directory[start : start + name_size], source)
    extra = directory[start + name_size : start + name_size + extra_size]
    size, stored, header = _zip64(extra, [size, stored, header], name, source)
    if flags & ENCRYPTED:
        _refuse(source, f"the record {name!r} is encrypted")
    if method or stored != size:
        _refuse(source, f"the record {name!r} is compressed, as in an ordinary zip file; unpack it")
    return name, (flags, crc, size, header), stop


def _zip64(extra: bytes, values: list[int], name: str, source: str) -> list[int]:
    """`values` with every 0xFFFFFFFF replaced by the 64-bit number of the extra field."""
    wide = b""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<2H", extra)
        if kind == 1:
            wide = extra[4 : 4 + size]
        extra = extra[4 + size :]
    for i, value in enumerate(values):
        if value == 0xFFFFFFFF:
            if len(wide) < 8:
                _refuse(source, f"the record {name!r} lacks its 64-bit size")
            values[i], wide = int.from_bytes(wide[:8], "little"), wide[8:]
    return values


def _safe_name(raw: bytes, source: str) -> str:
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        _refuse(source, f"a record whose name is not UTF-8 ({raw[:40]!r})")
    if not name.isprintable() or "\\" in name or name.startswith("/") or ".." in name.split("/"):
        _refuse(source, f"a record with the unsafe name {name[:80]!r}")
    return name


def _with_offset(file: BinaryIO, entry: tuple[int, ...], name: str, limit: int, source: str) -> Record:
    """The record, after its local header has been found to agree with the directory."""
    flags, crc, size, header = entry
    if header + LOCAL.size > limit:
        _refuse(source, f"the record {name!r} lies outside the archive")
    fields = LOCAL.unpack(_read(file, header, LOCAL.size, source))
    name_size, extra_size = fields[9], fields[10]
    local_name = _read(file, header + LOCAL.size, name_size, source)
    sizes_agree = fields[8] in (size, 0xFFFFFFFF) or (flags & SIZES_FOLLOW and not fields[8])
    if fields[0] != b"PK\3\4" or fields[2] != flags or fields[3] or local_name != name.encode() or not sizes_agree:
        _refuse(source, f"the record {name!r} contradicts the archive directory")
    offset = header + LOCAL.size + name_size + extra_size
    if offset + size > limit:
        _refuse(source, f"the record {name!r} announces {size} bytes, more than the archive holds")
    return Record(offset, size, crc, header)
