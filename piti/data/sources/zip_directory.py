"""The directory of a zip archive, read as a stream: `zipfile` keeps a Python object for each of its members.

Format: PKWARE's APPNOTE.TXT, sections 4.3.7 (local header), 4.3.12 (directory), 4.3.14 to 4.3.16 (its end), 4.5.3 (zip64).
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

_END, _END_SIGNATURE = struct.Struct("<4s4H2LH"), b"PK\x05\x06"
_END64_LOCATOR, _END64_LOCATOR_SIGNATURE = struct.Struct("<4sLQL"), b"PK\x06\x07"
_END64, _END64_SIGNATURE = struct.Struct("<4sQ2H2L4Q"), b"PK\x06\x06"
_RECORD, _RECORD_SIGNATURE = struct.Struct("<4s6H3L5H2L"), b"PK\x01\x02"
_LOCAL, _LOCAL_SIGNATURE = struct.Struct("<4s5H3L2H"), b"PK\x03\x04"
_PLACE = struct.Struct("<2Q2HL")
_LONGEST_COMMENT_BYTES = 0xFFFF
_ELSEWHERE = 0xFFFFFFFF  # a 32-bit field whose value is in the zip64 extra field
_ENCRYPTED, _NAME_IS_UTF8 = 0x1, 0x800
_PIECE_BYTES = 1 << 20
_LARGEST = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class ZipMember:
    """A file as the directory describes it; `header_offset` in bytes from the start of the archive."""

    path: str
    size_bytes: int
    packed_bytes: int
    header_offset: int
    method: int
    flags: int
    crc: int

    @property
    def place(self) -> bytes:
        """What `read_member` needs besides the size, packed."""
        return _PLACE.pack(self.header_offset, self.packed_bytes, self.method, self.flags, self.crc)


def zip_members(stream: IO[bytes]) -> Iterator[ZipMember]:
    """Files and folders (their paths end with `/`) in the order of the directory. Raises zipfile.BadZipFile."""
    start, size_bytes, shift = _find_directory(stream)
    stream.seek(start)
    window, left = b"", size_bytes
    while left or window:
        if len(window) < _PIECE_BYTES and left:
            piece = stream.read(min(left, _PIECE_BYTES))
            if not piece:
                raise zipfile.BadZipFile("Truncated central directory")
            window, left = window + piece, left - len(piece)
        position, longest = 0, _RECORD.size + 3 * 0xFFFF
        while len(window) - position >= (longest if left else 1):
            member, position = _member(window, position, shift)
            yield member
        window = window[position:]


def read_member(stream: IO[bytes], path: str, size_bytes: int, place: bytes) -> bytes:
    """Content of a file. Raises zipfile.BadZipFile or zlib.error where it is damaged or encrypted."""
    offset, packed_bytes, method, flags, crc = _PLACE.unpack(place)
    if flags & _ENCRYPTED:
        raise zipfile.BadZipFile("it is encrypted")
    stream.seek(offset)
    header = stream.read(_LOCAL.size)
    if len(header) != _LOCAL.size or not header.startswith(_LOCAL_SIGNATURE):
        raise zipfile.BadZipFile(f"no header of {path}")
    *_, name_bytes, extra_bytes = _LOCAL.unpack(header)
    stream.seek(offset + _LOCAL.size + name_bytes + extra_bytes)
    info = zipfile.ZipInfo(path)
    info.compress_type, info.compress_size, info.file_size, info.CRC = method, packed_bytes, size_bytes, crc
    with zipfile.ZipExtFile(stream, "r", info) as member:
        return member.read()


def member_span(place: bytes) -> tuple[int, int]:
    """Offset and bytes of a member with what lies before its content, the name and notes left out of account."""
    offset, packed_bytes, *_ = _PLACE.unpack(place)
    return offset, _LOCAL.size + packed_bytes


def _find_directory(stream: IO[bytes]) -> tuple[int, int, int]:
    """Where the directory begins, its size, and how many bytes lie before the archive (a program that unpacks it)."""
    size_bytes = stream.seek(0, os.SEEK_END)
    before = max(0, size_bytes - _LONGEST_COMMENT_BYTES - _END.size - _END64_LOCATOR.size - _END64.size)
    stream.seek(before)
    tail = stream.read()
    end = tail.rfind(_END_SIGNATURE)
    if end < 0 or end + _END.size > len(tail):
        raise zipfile.BadZipFile("File is not a zip file")
    *_, directory_bytes, offset, _ = _END.unpack_from(tail, end)
    locator, end64 = end - _END64_LOCATOR.size, end - _END64_LOCATOR.size - _END64.size
    if end64 >= 0 and tail.startswith(_END64_LOCATOR_SIGNATURE, locator) and tail.startswith(_END64_SIGNATURE, end64):
        *_, directory_bytes, offset = _END64.unpack_from(tail, end64)
        end = end64
    start = before + end - directory_bytes
    if start < 0:
        raise zipfile.BadZipFile("Bad offset for central directory")
    return start, directory_bytes, start - offset


def _member(window: bytes, position: int, shift: int) -> tuple[ZipMember, int]:
    """The member whose record begins at `position`, and where the next begins."""
    if len(window) - position < _RECORD.size:
        raise zipfile.BadZipFile("Truncated central directory")
    record = _RECORD.unpack_from(window, position)
    signature, _, _, flags, method, _, _, crc, packed, size, name_bytes, extra_bytes, comment_bytes = record[:13]
    if signature != _RECORD_SIGNATURE:
        raise zipfile.BadZipFile("Bad magic number for central directory")
    name_end = position + _RECORD.size + name_bytes
    name = window[position + _RECORD.size : name_end]
    try:
        path = name.decode("utf-8" if flags & _NAME_IS_UTF8 else "cp437").partition("\0")[0]
    except UnicodeDecodeError as error:
        raise zipfile.BadZipFile(f"a name that is no UTF-8: {name!r}") from error
    extra = window[name_end : name_end + extra_bytes]
    size, packed, offset = _wide_fields(extra, [size, packed, record[-1]])
    if not 0 <= offset + shift <= _LARGEST or max(size, packed) > _LARGEST:
        raise zipfile.BadZipFile(f"no such place or size: {path!r}")
    member = ZipMember(path, size, packed, offset + shift, method, flags, crc)
    return member, name_end + extra_bytes + comment_bytes


def _wide_fields(extra: bytes, fields: list[int]) -> list[int]:
    """Size, packed size and offset, those of 64 bits taken from the extra field, which holds them in this order."""
    if _ELSEWHERE not in fields:
        return fields
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if kind == 1:
            try:
                wide = iter(struct.unpack_from(f"<{length // 8}Q", extra, 4))
                return [next(wide) if field == _ELSEWHERE else field for field in fields]
            except (struct.error, StopIteration) as error:
                raise zipfile.BadZipFile("Corrupt zip64 extra field") from error
        extra = extra[4 + length :]
    return fields
