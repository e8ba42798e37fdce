"""A picture file opened by Pillow: damage is refused with its reason, and pixels come as they are stored, not turned."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from piti.data.items import RejectedItem

Number = TypeVar("Number", bound=np.generic)
# Of the formats that Pillow knows, those that datasets hold: some of the others start programs.
_FORMATS = (
    "JPEG", "PNG", "WEBP", "AVIF", "BMP", "DIB", "TIFF", "GIF", "PPM", "JPEG2000", "TGA", "PCX", "QOI", "SGI", "PSD",
)  # fmt: skip
_ORIENTATION = 0x0112
_SIDEWAYS, _ROWS_REVERSED, _COLUMNS_REVERSED = (5, 6, 7, 8), (3, 4, 7, 8), (2, 3, 6, 7)
_UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # fmt: skip
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_UNKNOWN = "file is not a picture of a known format"
_WARNINGS = RLock()  # what is done about them belongs to the process, not to a thread


def open_picture(data: bytes) -> Image.Image:
    """The picture, its pixels not decoded yet. Raises RejectedItem."""
    if not data:
        raise RejectedItem("file is empty (0 bytes)")
    is_tiff = data.startswith(_TIFF_STARTS)
    unknown = "file is a TIFF of a kind that is not read: store 8, 16 or 32 bits" if is_tiff else _UNKNOWN
    with _refusing(unknown), _silence():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        picture = Image.open(io.BytesIO(data), formats=_FORMATS)
        dict(getattr(picture, "tag_v2", {}))  # now, since reading a TIFF's tags may warn
        return picture


def stored_pixels(picture: Image.Image) -> Image.Image:
    """The pixels as they lie in the file. Raises RejectedItem where it is damaged."""
    turn = orientation_of(picture) if picture.format == "TIFF" else 1
    with _refusing(), _silence():
        picture.load()
        return picture if turn == 1 else picture.transpose(_UNDO[turn])  # Pillow turns TIFFs itself


def orientation_of(picture: Image.Image) -> int:
    """EXIF's, XMP's or TIFF's own orientation, 2 to 8; 1 (upright) where there is none, or where that block is damaged.

    Raises RejectedItem where a PNG is damaged: EXIF may lie behind its pixels.
    """
    if picture.format == "PNG":
        stored_pixels(picture)
    try:
        with _silence():
            found = int(picture.getexif().get(_ORIENTATION, 1))
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, EOFError, struct.error):
        return 1
    return found if found in _UNDO else 1


def turned(values: NDArray[Number], orientation: int) -> NDArray[Number]:
    """(H, W) or (H, W, C) as stored -> upright, by the EXIF standard."""
    if orientation in _SIDEWAYS:
        values = values.swapaxes(0, 1)
    if orientation in _ROWS_REVERSED:
        values = values[::-1]
    if orientation in _COLUMNS_REVERSED:
        values = values[:, ::-1]
    return np.ascontiguousarray(values)


def is_sideways(orientation: int) -> bool:
    """Whether rows become columns."""
    return orientation in _SIDEWAYS


def bits_of(picture: Image.Image, data: bytes) -> int:
    """Bits of a channel as stored."""
    tags: dict[int, Any] = dict(getattr(picture, "tag_v2", {}))
    if picture.format == "PNG":
        return data[24]  # in the header
    if picture.format == "TIFF":
        return int(max(tags.get(258, (1,))))
    if picture.format == "SGI":
        return 8 * data[3]
    return 1 if picture.mode == "1" else 16 if picture.mode.startswith("I;") else 8


@contextmanager
def _silence() -> Iterator[None]:
    """Hide Pillow's warnings."""
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _refusing(unknown: str = _UNKNOWN) -> Iterator[None]:
    """RejectedItem instead of what Pillow raises on damaged files, with `unknown` where it does not know a format."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RejectedItem(f"picture is larger than {Image.MAX_IMAGE_PIXELS} pixels") from error
    except UnidentifiedImageError as error:
        raise RejectedItem(unknown) from error
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        LookupError,
        RuntimeError,
        struct.error,
        zlib.error,
        TypeError,
    ) as error:
        raise RejectedItem(f"picture is damaged ({error or type(error).__name__})") from error
