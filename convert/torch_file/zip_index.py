"""Finds the members of an uncompressed zip archive, so that they can be read in place.

torch writes its checkpoints as such archives. Compressed, encrypted, duplicate and overlapping members are refused, and so is
a member whose own header or checksum contradicts the directory.
"""

import struct
import zipfile
from typing import BinaryIO, NamedTuple, NoReturn

from instancevg_jax.errors import InputError, first_line

LOCAL_HEADER = struct.Struct("<26x2H")  # of a member: its last two fields, the lengths of name and extra field
ENCRYPTED = 0x1  # bit of a member's flags
CHUNK = 1 << 22


class Member(NamedTuple):
    """A run of bytes of the archive."""

    offset: int
    size: int
    crc: int  # 0 in all members of an archive that was saved without checksums


def read_index(file: BinaryIO, source: str) -> dict[str, Member]:
    """Every member by name, its checksum verified. `source` names the file in errors.

    Raises InputError for anything that torch would not write.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return _checked_members(archive, file, source)
    except InputError:
        raise
    except (zipfile.BadZipFile, RuntimeError, ValueError, EOFError, struct.error) as error:  # all that zipfile raises
        _refuse(source, f"a damaged or truncated archive ({first_line(error)})")


def _checked_members(archive: zipfile.ZipFile, file: BinaryIO, source: str) -> dict[str, Member]:
    members: dict[str, Member] = {}
    end, previous = 0, ""
    entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    has_checksums = any(entry.CRC for entry in entries)
    for entry in entries:
        name = entry.filename
        if name in members:
            _refuse(source, f"two records named {name!r}")
        if entry.flag_bits & ENCRYPTED:
            _refuse(source, f"the record {name!r} is encrypted")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            _refuse(source, f"the record {name!r} is compressed, as in an ordinary zip file; unpack it")
        if entry.header_offset < end:
            _refuse(source, f"the records {previous!r} and {name!r} overlap")
        with archive.open(entry) as content:  # compares the name in the member's header
            while has_checksums and content.read(CHUNK):
                pass  # the end is where zipfile compares the checksum
        file.seek(entry.header_offset)
        offset = entry.header_offset + LOCAL_HEADER.size + sum(LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size)))
        members[name] = Member(offset, entry.file_size, entry.CRC)
        end, previous = offset + entry.file_size, name
    if end > file.seek(0, 2):
        _refuse(source, f"the record {previous!r} ends beyond the end of the file: a truncated download?")
    return members


def _refuse(source: str, problem: str) -> NoReturn:
    raise InputError(f"{source}: {problem}; expected a checkpoint as torch.save writes it")
