"""From a picture file, whatever it holds, to upright 8-bit RGB; and from a label or depth file to its values.

Pillow reads here, because it refuses truncated files, and libjpeg-turbo (simplejpeg) where it has nothing to complain
of; OpenCV, which fills truncated files with grey, reads only files of ours whose hash has been checked.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any, cast

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from piti.data.grey_png import decode_grey_png
from piti.data.items import RejectedItem, as_array
from piti.data.sources.structure import JPEG_START, has_jpeg_end, is_plain_jpeg, read_grey_png

_LOSSY_FORMATS = frozenset({"JPEG", "MPO", "WEBP", "GIF", "AVIF"})
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_LOST_PIXELS = ("remature end", "bad Huffman code", "instead of RST")  # what libjpeg says where it makes some up
_MIN_SIDE_PIXELS = 16
_WARNINGS = Lock()  # what is done about them belongs to the process, not to a thread
_WIDE_MODES = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})


@dataclass(frozen=True)
class PlainJpeg:
    """A JPEG that any decoder reads alike, decoded when its pixels are asked for (piti.data.items)."""

    data: bytes
    shape: tuple[int, ...]

    def decode(self) -> NDArray[np.uint8]:
        """uint8 (H, W, 3) RGB, Pillow's levels. Raises RejectedItem where the file is damaged."""
        try:
            return np.asarray(simplejpeg.decode_jpeg(self.data, "RGB", strict=True), dtype=np.uint8)
        except ValueError as complaint:
            return np.array(self._forgiven(complaint), dtype=np.uint8)

    def check(self) -> None:
        """Raise RejectedItem where the file is damaged: reads all of it, but makes an eighth of each side of it."""
        try:
            simplejpeg.decode_jpeg(self.data, "GRAY", min_height=1, min_width=1, min_factor=8, strict=True)
        except ValueError as complaint:
            self._forgiven(complaint)

    @property
    def seems_whole(self) -> bool:
        """Whether it ends with its end marker, no pixel being looked at."""
        return has_jpeg_end(self.data)

    def _forgiven(self, complaint: ValueError) -> Image.Image:
        """What Pillow makes of an oddity that costs no pixels. Raises RejectedItem for any other."""
        picture = _open(self.data)
        if any(words in str(complaint) for words in _LOST_PIXELS):
            raise RejectedItem(f"picture is damaged ({complaint})")
        return picture


@dataclass(frozen=True)
class Picture:
    """`rgb` upright, and decoded as `image`, uint8 (H, W, 3).

    `keep`: the file's suffix if its bytes decode to just that, see LoadedItem. `orientation`: EXIF's, 1 to 8, by which
    it was turned.
    """

    rgb: NDArray[np.uint8] | PlainJpeg
    keep: str | None
    lossy: bool
    file_format: str
    orientation: int = 1

    @cached_property
    def image(self) -> NDArray[np.uint8]:
        return as_array(self.rgb)


def decode_picture(data: bytes) -> Picture:
    """Decode a photograph: EXIF rotation applied, transparency laid on white, 16 bits cut to 8, all turned to RGB.

    Raises RejectedItem where the file is empty, truncated, no picture, too large to trust or too small to use; for
    plain JPEGs, which are most photographs, damage shows only when `image` is asked for, or by `rgb.check()`.
    """
    shape = _plain_jpeg_shape(data)
    found = _decoded(_open(data), data) if shape is None else Picture(PlainJpeg(data, shape), "jpg", True, "JPEG")
    height, width = found.rgb.shape[:2]
    if min(height, width) < _MIN_SIDE_PIXELS:
        raise RejectedItem(f"picture is only {width}x{height} pixels")
    return found


def _plain_jpeg_shape(data: bytes) -> tuple[int, int, int] | None:
    """(H, W, 3) of a JPEG that any decoder reads alike, by its headers; None for any other file. Raises RejectedItem."""
    if is_plain_jpeg(data):  # most of them, in a tenth of the time that Pillow takes
        with suppress(ValueError):
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
            if height * width <= (Image.MAX_IMAGE_PIXELS or math.inf):
                return height, width, 3
    elif data.startswith(JPEG_START):
        picture = _open(data, whole=False)
        if picture.format == "JPEG" and _is_plain(picture, data):
            return picture.height, picture.width, 3
    return None


def _decoded(picture: Image.Image, data: bytes) -> Picture:
    file_format, orientation = picture.format or "unknown", _orientation(picture)
    keep = "png" if file_format == "PNG" and _is_plain(picture, data) else None
    turn = _UPRIGHT.get(orientation)
    rgb = np.array(_to_rgb(picture if turn is None else picture.transpose(turn)), dtype=np.uint8)
    return Picture(rgb, keep, file_format in _LOSSY_FORMATS, file_format, 1 if turn is None else orientation)


def decode_labels(data: bytes) -> NDArray[Any]:
    """Label ids (H, W), uint8 or uint16, from a grey, palette (its indices) or 16-bit picture.

    Raises RejectedItem where the file is unreadable or holds colours instead of labels.
    """
    quick = grey_values(data, bits=8)
    if quick is not None:
        return quick
    picture = _open(data)
    if picture.mode in _WIDE_MODES:
        return _wide_values(picture)
    if picture.mode == "1":
        return np.asarray(picture, dtype=np.uint8)
    values = np.asarray(picture, dtype=np.uint8)
    if picture.mode in ("L", "P"):
        return values
    if picture.mode == "RGB" and (values[..., 0] == values[..., 1]).all() and (values[..., 0] == values[..., 2]).all():
        return values[..., 0]
    raise RejectedItem(f"condition holds colours ({picture.mode}), not label ids")


def decode_edges(data: bytes) -> NDArray[np.uint8]:
    """Edges (H, W) uint8, 255 where the sketch is brighter than 0.6 (the published HED threshold), else 0."""
    grey = grey_values(data)
    if grey is None:
        grey = np.asarray(_to_rgb(_open(data)).convert("L"), dtype=np.uint8)
    return np.where(grey > 0.6 * 255, np.uint8(255), np.uint8(0))


def grey_values(data: bytes, bits: int | None = None) -> NDArray[np.uint8] | None:
    """The levels (H, W) of a whole grey PNG of 8 bits or 1 bit (0 or 255), or of `bits` only, as Pillow reads them.

    In a tenth to a quarter of Pillow's time; None where Pillow has to say what the file is.
    """
    found = read_grey_png(data)
    if found is None or (bits is not None and found.bits != bits):
        return None
    if not 0 < found.height * found.width <= (Image.MAX_IMAGE_PIXELS or math.inf):
        return None
    return decode_grey_png(data)


def decode_depth(data: bytes, unit_metres: float) -> NDArray[np.float32]:
    """Depth (H, W) in metres from a single-channel picture of multiples of `unit_metres`; 0 means unknown."""
    picture = _open(data)
    if picture.mode == "F":
        metres = np.asarray(picture, dtype=np.float32) * np.float32(unit_metres)
        return np.where(np.isfinite(metres) & (metres > 0), metres, np.float32(0))
    if picture.mode not in _WIDE_MODES and picture.mode != "L":
        raise RejectedItem(f"depth must have one channel, this picture is {picture.mode}")
    values = _wide_values(picture) if picture.mode in _WIDE_MODES else np.asarray(picture)
    return (values.astype(np.float64) * unit_metres).astype(np.float32)


def decode_normals(data: bytes) -> NDArray[np.float32]:
    """Normals (H, W, 3) in [-1, 1] from a picture that stores (n + 1) / 2 in 8 bits; black means unknown (zeros)."""
    values = np.asarray(_to_rgb(_open(data)), dtype=np.float32)
    normals = values / 127.5 - 1.0
    normals[values.sum(axis=2) == 0] = 0.0
    return normals.astype(np.float32)


def _open(data: bytes, *, whole: bool = True) -> Image.Image:
    """The picture, its pixels too if `whole`. Raises RejectedItem."""
    if not data:
        raise RejectedItem("file is empty (0 bytes)")
    try:
        with _WARNINGS, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture: Image.Image = Image.open(io.BytesIO(data))
            if whole:
                picture.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RejectedItem(f"picture is larger than {Image.MAX_IMAGE_PIXELS} pixels") from error
    except UnidentifiedImageError as error:
        raise RejectedItem("file is not a picture of a known format") from error
    except (OSError, SyntaxError, ValueError, EOFError, LookupError, RuntimeError, struct.error, zlib.error) as error:
        # What Pillow's decoders raise on damaged files.
        raise RejectedItem(f"picture is damaged ({error or type(error).__name__})") from error
    return picture


def _orientation(picture: Image.Image) -> int:
    """EXIF orientation 1..8; 1 (upright) where there is none, or where the EXIF block itself is damaged."""
    try:
        return int(picture.getexif().get(_EXIF_ORIENTATION, 1))
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, EOFError, struct.error):
        return 1


def _is_plain(picture: Image.Image, data: bytes) -> bool:
    """Whether any decoder makes the same 8-bit RGB of the file: nothing rotated, blended, widened or animated."""
    if picture.mode != "RGB" or "transparency" in picture.info or getattr(picture, "n_frames", 1) > 1:
        return False
    is_wide_png = picture.format == "PNG" and data[24] > 8  # bit depth in the header
    return not is_wide_png and _orientation(picture) not in _UPRIGHT


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in _WIDE_MODES:
        return Image.fromarray((_wide_values(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise RejectedItem("picture holds floating point values, not a photograph")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        opaque = picture.convert("RGBA")
        white = Image.new("RGBA", opaque.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, opaque).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _wide_values(picture: Image.Image) -> NDArray[np.uint16]:
    values = np.asarray(picture)
    if values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
        raise RejectedItem("picture holds values outside 16 bits")
    return cast(NDArray[np.uint16], values.astype(np.uint16))
