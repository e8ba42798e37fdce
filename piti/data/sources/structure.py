"""What the structure of a file tells without decoding its pixels: is it whole, and what does it hold?"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive
_TABLES = frozenset({0xC4, 0xDB, 0xDD})  # Huffman's, quantization, restart interval
_APP0, _COMMENT, _START_OF_SCAN = 0xE0, 0xFE, 0xDA
_TELLING_MORE = (b"Exif", b"http", b"MPF")  # EXIF and XMP may tell how the picture lies, MPF of further ones
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER = struct.Struct(">2L5B")  # width, height, bits, colour type, compression, filter, interlacing
_PNG_BEGINNING = _PNG_SIGNATURE + struct.pack(">L4s", _PNG_HEADER.size, b"IHDR")
_CHUNK = struct.Struct(">L4s")
_CHECKSUM_BYTES = 4  # after a chunk's content
_WITHOUT_EFFECT = {
    b"tIME": 7,
    b"pHYs": 9,
    b"gAMA": 4,
    b"cHRM": 32,
    b"sRGB": 1,
}  # on the values that decoders give: bytes
_TEXT, _MOST_TEXT_BYTES = b"tEXt", 1 << 20  # Pillow refuses some more


@dataclass(frozen=True)
class GreyPng:
    """A PNG of one grey value of `bits` a pixel, which any decoder reads alike."""

    height: int
    width: int
    bits: int


def is_plain_jpeg(data: bytes) -> bool:
    """Whether a JPEG's headers are in order and tell of one picture of three 8-bit channels, and of no EXIF."""
    if not data.startswith(JPEG_START):
        return False
    position, frame = len(JPEG_START), b""
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker, begin = data[position + 1], data[position + 4 : position + 10]
        if marker == _START_OF_SCAN:
            return frame[:1] + frame[5:] == b"\x08\x03"  # bits, channels
        if marker in _FRAMES:
            frame = begin
        elif not (_APP0 <= marker <= _COMMENT or marker in _TABLES) or begin.startswith(_TELLING_MORE):
            return False
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return False


def has_jpeg_end(data: bytes) -> bool:
    """Whether a JPEG's last bytes are its end marker."""
    return data.endswith(_JPEG_END)


def grey_png_header(data: bytes) -> GreyPng | None:
    """What a PNG's header says, if it is grey and not interlaced. None for any other file."""
    if not data.startswith(_PNG_BEGINNING) or len(data) < len(_PNG_BEGINNING) + _PNG_HEADER.size:
        return None
    width, height, bits, *others = _PNG_HEADER.unpack_from(data, len(_PNG_BEGINNING))
    return None if any(others) else GreyPng(height, width, bits)  # grey, the usual compression and filters are 0


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind of each chunk of a PNG, and where its content begins and ends; the last may end beyond the file."""
    end = len(_PNG_SIGNATURE) - _CHECKSUM_BYTES
    while end + _CHECKSUM_BYTES + _CHUNK.size <= len(data):
        length, kind = _CHUNK.unpack_from(data, end + _CHECKSUM_BYTES)
        start = end + _CHECKSUM_BYTES + _CHUNK.size
        end = start + length
        yield kind, start, end


def grey_png_pixels(data: bytes) -> list[tuple[int, int]]:
    """Where the parts of a grey PNG's compressed pixels begin and end.

    Empty where decoders could disagree about its chunks, or refuse it. After the header come pixels in one stretch, the
    end, and none but a few others that change no value, of the right size.
    """
    parts: list[tuple[int, int]] = []
    text_bytes, last = 0, b""
    chunks = png_chunks(data)
    next(chunks, None)  # the header
    for kind, start, end in chunks:
        if kind == b"IEND":
            return parts if start == end == len(data) - _CHECKSUM_BYTES else []
        if kind == b"IDAT" and (last == kind or not parts):
            parts.append((start, end))
        elif kind == _TEXT and text_bytes + end - start <= _MOST_TEXT_BYTES:
            text_bytes += end - start
        elif _WITHOUT_EFFECT.get(kind) != end - start:
            return []
        last = kind
    return []


def read_grey_png(data: bytes) -> GreyPng | None:
    """What a PNG holds if it is whole, grey, not interlaced and without anything that decoders treat differently.

    Whole means that it ends with its last chunk and that every chunk has its checksum. None for any other file.
    """
    found = grey_png_header(data)
    if found is None or not grey_png_pixels(data):
        return None
    for kind, start, end in png_chunks(data):
        checksum = data[end : end + _CHECKSUM_BYTES]
        if int.from_bytes(checksum, "big") != zlib.crc32(memoryview(data)[start - len(kind) : end]):
            return None
    return found
