"""Label maps, depth and normals as the numbers that were written, whatever the format scales, inverts or turns for show.

`read_samples` owns this for all formats. A format or file that does not tell for certain which numbers were written (it
is lossy, or its writers renumber palettes, or its 0 stands for white) says so in `Samples.doubt`.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from piti.data.items import RejectedItem
from piti.data.sources.opening import bits_of, open_picture, stored_pixels

_NUMPY_START = b"\x93NUMPY"
_PNM_START = re.compile(rb"P[2356][\s#]")
_PNM_NUMBER = re.compile(rb"(?:\s|#[^\n\r]*[\n\r])*(\d+)")
_COMPRESSION, _PHOTOMETRIC, _SAMPLE_FORMAT = 259, 262, 339  # TIFF tags, and what they say:
_LOSSLESS_TIFF = frozenset({None, 1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 50000})
_WHITE_IS_ZERO, _SIGNED = 0, 2
_EXACT_FORMATS = frozenset({"PNG", "TIFF", "BMP", "DIB", "TGA", "PCX", "QOI", "SGI", "PPM", "WEBP"})
_MOST_LABEL = np.iinfo(np.uint16).max


@dataclass(frozen=True)
class Samples:
    """The numbers of a single-channel file, as stored and not turned.

    `values` (H, W): integers or floats. `largest` stands for white (for black where `is_zero_white`); None where the
    format leaves that open. `transparent`: the number that marks transparent pixels. `is_index`: `values` number the
    colours of a palette. `doubt`: why these may not be the numbers that were written.
    """

    values: NDArray[Any]
    largest: int | None
    transparent: int | None = None
    is_zero_white: bool = False
    is_index: bool = False
    doubt: str | None = None

    @property
    def found(self) -> str:
        """Which numbers there are, for people."""
        numbers = np.unique(self.values)
        few = ", ".join(f"{number:g}" for number in numbers[:6])
        return few if numbers.size <= 6 else f"{few} ... {numbers[-1]:g} ({numbers.size} different numbers)"


def read_samples(data: bytes) -> Samples:
    """The numbers in a file of any format. Raises RejectedItem where it is damaged or holds colours."""
    if data.startswith(_NUMPY_START):
        return Samples(_plane(_array(data)), None)
    if _PNM_START.match(data):
        return _pnm_samples(data)
    picture = open_picture(data)
    doubt = _doubt(picture, data)
    return _picture_samples(picture, stored_pixels(picture), bits_of(picture, data), doubt)


def labels(data: bytes) -> NDArray[Any]:
    """Label ids (H, W), uint8 or uint16. Raises RejectedItem where the file does not tell them for certain."""
    samples = _certain(data, "label map")
    values = samples.values
    if values.dtype.kind not in "ui" or values.min() < 0 or values.max() > _MOST_LABEL:
        raise RejectedItem(f"label map holds {samples.found} as {values.dtype}, not label ids of 8 or 16 bits")
    return np.ascontiguousarray(values, dtype=np.uint8 if values.max() <= np.iinfo(np.uint8).max else np.uint16)


def depth(data: bytes, unit_metres: float) -> NDArray[np.float32]:
    """Depth (H, W) in metres; 0 means unknown, as does what is not finite or not positive. Raises RejectedItem.

    NumPy files hold metres, pictures multiples of `unit_metres`.
    """
    samples = _certain(data, "depth")
    if samples.is_index:
        raise RejectedItem("depth must have one channel of numbers, this picture has a palette of colours")
    unit = 1.0 if data.startswith(_NUMPY_START) else unit_metres
    metres = samples.values.astype(np.float64) * unit
    return np.where(np.isfinite(metres) & (metres > 0), metres, 0.0).astype(np.float32)


def where_valid(metres: NDArray[np.float32], mask: bytes) -> NDArray[np.float32]:
    """Depth with 0 wherever the file `mask` is not positive. Raises RejectedItem, also where the sizes differ."""
    values = _certain(mask, "depth mask").values
    if metres.shape != values.shape:
        raise RejectedItem(
            f"depth is {metres.shape[1]}x{metres.shape[0]} pixels, its mask {values.shape[1]}x{values.shape[0]}"
        )
    return np.where(np.nan_to_num(values.astype(np.float32)) > 0, metres, np.float32(0))


def normals(data: bytes) -> NDArray[np.float32]:
    """Normals (H, W, 3) in [-1, 1]; all zero means unknown, as does what is not finite. Raises RejectedItem.

    NumPy files hold them as they are, pictures (n + 1) / 2 in 8 or 16 bits, black where unknown.
    """
    if data.startswith(_NUMPY_START):
        found = _array(data)
        if found.ndim != 3 or found.shape[2] != 3:
            raise RejectedItem(f"normal map has shape {found.shape}, not (height, width, 3)")
        found = found.astype(np.float32)
        return np.where(np.isfinite(found).all(axis=2, keepdims=True), found, np.float32(0))
    picture = open_picture(data)
    if (doubt := _doubt(picture, data)) is not None:
        raise RejectedItem(f"normal map is {doubt}")
    if picture.mode not in ("RGB", "RGBA", "P"):
        raise RejectedItem(f"normal map must have three channels, this picture is {picture.mode}")
    values = np.asarray(stored_pixels(picture).convert("RGB"), dtype=np.float32)
    known = values.any(axis=2, keepdims=True)
    return np.where(known, values / np.float32(127.5) - np.float32(1), np.float32(0))


def _certain(data: bytes, what: str) -> Samples:
    """Samples without doubt. Raises RejectedItem."""
    samples = read_samples(data)
    if samples.doubt is not None:
        raise RejectedItem(f"{what} is {samples.doubt}")
    return samples


def _picture_samples(picture: Image.Image, pixels: Image.Image, bits: int, doubt: str | None) -> Samples:
    """The numbers of a picture with its stored pixels. Raises RejectedItem where it holds colours."""
    values = np.asarray(pixels)
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if picture.mode == "P":
        return Samples(values, None, is_index=True, doubt=doubt)
    if picture.mode == "F":
        return Samples(values, None, doubt=doubt)
    if picture.mode == "I":
        is_unsigned = picture.format == "TIFF" and bits == 32 and _tag(picture, _SAMPLE_FORMAT) != _SIGNED
        return Samples(values.view(np.uint32) if is_unsigned else values, None, doubt=doubt)
    if picture.mode not in ("1", "L") and not picture.mode.startswith("I;16"):
        return _grey_colours(picture.mode, values, bits, doubt)
    if _tag(picture, _SAMPLE_FORMAT) == _SIGNED:
        return Samples(values.view(np.dtype(f"i{values.dtype.itemsize}")), None, doubt=doubt)
    largest = 2**bits - 1
    if picture.mode == "1":
        values = values.astype(np.uint8)
    elif bits < 8:
        values = values // np.uint8(255 // largest)  # by which Pillow scales them
    is_zero_white = _tag(picture, _PHOTOMETRIC) == _WHITE_IS_ZERO
    if is_zero_white and picture.mode in ("1", "L"):
        values = np.uint8(largest) - values  # Pillow shows them inverted
    marked = picture.info.get("transparency")
    if isinstance(marked, int):
        marked = int(marked > 0) if picture.mode == "1" else marked & largest
    return Samples(values, largest, marked if isinstance(marked, int) else None, is_zero_white, doubt=doubt)


def _grey_colours(mode: str, values: NDArray[Any], bits: int, doubt: str | None) -> Samples:
    """The numbers of a picture whose channels are all alike and opaque. Raises RejectedItem for any other."""
    has_alpha = mode in ("LA", "RGBA") and bool((values[..., -1] == 255).all())
    colours = values[..., :-1] if has_alpha else values
    if not (has_alpha or mode == "RGB") or (colours != colours[..., :1]).any():
        reason = f"condition holds colours ({mode}), not numbers in one channel"
        raise RejectedItem(reason if doubt is None else f"{reason}; it is {doubt}")
    if bits > 8:
        doubt = doubt or f"a picture of several channels of {bits} bits, of which 8 can be read: store one channel"
    return Samples(colours[..., 0], 255, doubt=doubt)


def _tag(picture: Image.Image, number: int) -> Any:
    """The first value of a TIFF's tag; None where there is none, and for other files."""
    found = getattr(picture, "tag_v2", {}).get(number)
    return found[0] if isinstance(found, tuple) else found


def _doubt(picture: Image.Image, data: bytes) -> str | None:
    """Why a picture's numbers may not be those that were written; None where they are."""
    kind = picture.format or "unknown"
    compression = _tag(picture, _COMPRESSION)
    if kind in ("JPEG", "MPO", "AVIF") or (kind == "WEBP" and not _is_lossless_webp(data)):
        return f"a lossy file ({kind}), which does not keep numbers: store it as PNG"
    if kind == "TIFF" and compression not in _LOSSLESS_TIFF:
        return f"a TIFF of compression {compression}, which does not keep numbers: store it as PNG"
    if kind == "TIFF" and _tag(picture, _PHOTOMETRIC) == _WHITE_IS_ZERO:
        return "a TIFF whose 0 is white, so that programs disagree about its numbers: store it as PNG"
    if kind == "PPM" and picture.mode == "1":
        return "a PBM, whose 0 is white, so that programs disagree about its numbers: store it as PNG"
    if kind == "GIF":
        return "a GIF, whose writers renumber its colours: store it as PNG"
    if kind == "SGI" and data[3] > 1:
        return "an SGI file of 16 bits, of which 8 can be read: store it as PNG"
    if kind not in _EXACT_FORMATS:
        return f"a {kind} file, which does not tell for certain which numbers were written: store it as PNG"
    return None


def _is_lossless_webp(data: bytes) -> bool:
    """Whether the first picture in a WebP file is stored without loss."""
    position = 12  # behind RIFF, size and WEBP
    while position + 8 <= len(data):
        kind, size_bytes = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
        if kind in (b"VP8 ", b"VP8L", b"ANMF"):
            return kind == b"VP8L"
        position += 8 + size_bytes + size_bytes % 2
    return False


def _pnm_samples(data: bytes) -> Samples:
    """The numbers of a PGM or PPM file, of any maxval. Raises RejectedItem."""
    kind, position = data[1] - ord("0"), 2
    header: list[int] = []
    while len(header) < 3:
        match = _PNM_NUMBER.match(data, position)
        if match is None:
            raise RejectedItem("picture is damaged (its header ends early)")
        header.append(int(match.group(1)))
        position = match.end()
    width, height, largest = header
    if min(width, height) == 0 or not 0 < largest <= _MOST_LABEL:
        raise RejectedItem(f"picture is damaged (its header says {width}x{height} pixels up to {largest})")
    if width * height > (Image.MAX_IMAGE_PIXELS or width * height):
        raise RejectedItem(f"picture is larger than {Image.MAX_IMAGE_PIXELS} pixels")
    channels = 3 if kind in (3, 6) else 1
    values = _pnm_values(data, position, kind, (height, width, channels), largest)
    if values.max() > largest:
        raise RejectedItem(f"picture is damaged (it holds {values.max()}, its header allows {largest})")
    if (values != values[..., :1]).any():
        raise RejectedItem("condition holds colours (RGB), not numbers")
    return Samples(values[..., 0], largest)


def _pnm_values(data: bytes, position: int, kind: int, shape: tuple[int, int, int], largest: int) -> NDArray[Any]:
    count = shape[0] * shape[1] * shape[2]
    if kind <= 3:
        words = re.sub(rb"#[^\n\r]*", b" ", data[position:]).split()[:count]
        if not all(word.isdigit() for word in words):
            raise RejectedItem("picture is damaged (it holds something else than numbers)")
        values: NDArray[Any] = np.array(words, dtype=np.int64)
    else:
        kind_of_number = np.dtype(np.uint8 if largest < 256 else ">u2")
        values = np.frombuffer(data[position + 1 : position + 1 + count * kind_of_number.itemsize], kind_of_number)
    if values.size < count:
        raise RejectedItem("picture is damaged (it ends early)")
    return values.astype(np.uint8 if largest < 256 and values.max() < 256 else np.uint16).reshape(shape)


def _array(data: bytes) -> NDArray[Any]:
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError, TypeError) as error:  # what numpy raises on damaged files
        raise RejectedItem(f"array is damaged ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fuib" or not array.size:
        raise RejectedItem("array holds no numbers")
    return array


def _plane(array: NDArray[Any]) -> NDArray[Any]:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim != 2:
        raise RejectedItem(f"array has shape {array.shape}, not (height, width)")
    return array.astype(np.uint8) if array.dtype.kind == "b" else array
