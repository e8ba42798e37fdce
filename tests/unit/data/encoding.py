"""Pictures as files in memory, and archives on the disk."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """What Pillow writes of a picture in a format of its own, with that format's options."""
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def png_by_hand(values: np.ndarray, bits: int, transparent: Sequence[int] | np.ndarray = ()) -> bytes:
    """A PNG of 1 to 16 bits a channel: values (H, W) grey or (H, W, 3) RGB; `transparent`: the grey or colour marked so."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    rows = values.astype(">u2" if bits == 16 else np.uint8).reshape(height, -1)
    if bits < 8:
        rows = np.packbits(np.unpackbits(rows[..., None], axis=2)[..., 8 - bits :].reshape(height, -1), axis=1)
    header = struct.pack(">2I5B", width, height, bits, 0 if values.ndim == 2 else 2, 0, 0, 0)
    mark = chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)) if len(transparent) else b""
    content = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + mark + content + chunk(b"IEND", b"")


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    """A tar of these names and contents, compressed where the suffix is .gz; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
