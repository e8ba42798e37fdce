"""What the structure of a file tells without decoding its pixels: is it whole, and what does it hold?"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

_JPEG_END = b"\xff\xd9"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER = struct.Struct(">2L5B")  # width, height, bits, colour type, compression, filter, interlacing
_CHUNK = struct.Struct(">L4s")
_CHUNK_BYTES = 12  # length, type and checksum around a chunk's content
_WITHOUT_EFFECT = frozenset(
    [b"IHDR", b"IDAT", b"IEND", b"tEXt", b"zTXt", b"iTXt", b"tIME", b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"iCCP"]
)  # on the values that decoders give


@dataclass(frozen=True)
class GreyPng:
    """A PNG of one grey value of `bits` a pixel, which any decoder reads alike."""

    height: int
    width: int
    bits: int


def has_jpeg_end(data: bytes) -> bool:
    """Whether a JPEG's last bytes are its end marker."""
    return data.endswith(_JPEG_END)


def read_grey_png(data: bytes) -> GreyPng | None:
    """What a PNG holds if it is whole, grey, not interlaced and without anything that decoders treat differently.

    Whole means that it ends with its last chunk and that every chunk has its checksum. None for any other file.
    """
    if not data.startswith(_PNG_SIGNATURE):
        return None
    position, kinds = len(_PNG_SIGNATURE), []
    while position + _CHUNK_BYTES <= len(data):
        length, kind = _CHUNK.unpack_from(data, position)
        end = position + _CHUNK_BYTES + length
        checksum = zlib.crc32(memoryview(data)[position + 4 : end - 4])
        if end > len(data) or checksum != int.from_bytes(data[end - 4 : end], "big"):
            return None
        kinds.append(kind)
        position = end
    if position != len(data) or kinds[:1] != [b"IHDR"] or kinds[-1] != b"IEND" or b"IDAT" not in kinds:
        return None
    width, height, bits, colour_type, *others = _PNG_HEADER.unpack_from(data, len(_PNG_SIGNATURE) + _CHUNK.size)
    if colour_type != 0 or any(others) or not _WITHOUT_EFFECT.issuperset(kinds):
        return None
    return GreyPng(height, width, bits)
