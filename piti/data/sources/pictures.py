"""From a picture file, whatever it holds, to upright 8-bit sRGB; and from a given sketch to its edges.

Pillow reads most files, because it refuses truncated ones. libjpeg-turbo (simplejpeg) reads JPEGs, because it reports damage
that Pillow passes over. OpenCV fills truncated files with grey, so it sees only what Pillow has read before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from piti.config import SketchInversion
from piti.data.items import RejectedItem
from piti.data.sources.colours import to_srgb
from piti.data.sources.measurements import Samples, read_samples
from piti.data.sources.opening import bits_of, is_sideways, open_picture, orientation_of, stored_pixels, turned

_LOSSY_FORMATS = frozenset({"JPEG", "MPO", "WEBP", "GIF", "AVIF"})
_KEPT = {"JPEG": "jpg", "PNG": "png"}
_GREY_MODES = ("1", "L", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_LOST_PIXELS = ("remature end", "bad Huffman code", "instead of RST")  # what libjpeg says where it makes some up
_MIN_SIDE_PIXELS = 16
_TELLING = 0.02  # difference of logarithms of width / height; less may come from rounding a resized condition's sides
_EDGE = 0.6  # the published HED threshold
_DARKEST = 16  # a photograph whose numbers stay below 1/16 of white is black at 8 bits, or not scaled as it says


@dataclass(frozen=True)
class Picture:
    """`image`: upright, uint8 (H, W, 3) sRGB.

    `keep`: the file's suffix if its bytes decode to just that, see LoadedItem. `orientation`: by which it was turned, 1 to
    8. `colours`: what was done about an embedded colour profile; None where there was nothing to do.
    """

    image: NDArray[np.uint8]
    keep: str | None
    lossy: bool
    file_format: str
    orientation: int = 1
    colours: str | None = None


def decode_picture(data: bytes) -> Picture:
    """Decode a photograph: turned upright, transparency laid on white, converted to sRGB, cut to 8 bits.

    Raises RejectedItem where the file is empty, damaged, no picture, too large to trust or too small to use.
    """
    picture = open_picture(data)
    if min(picture.size) < _MIN_SIDE_PIXELS:
        raise RejectedItem(f"picture is only {picture.width}x{picture.height} pixels")
    orientation, is_plain = orientation_of(picture), _is_plain(picture, data)
    pixels, alpha = _pixels(picture, data)
    rgb, colours = to_srgb(pixels, picture.info.get("icc_profile"))
    levels = turned(_laid_on_white(rgb, alpha), orientation)
    if bits_of(picture, data) > 8 and levels.max() < _DARKEST:
        raise RejectedItem(
            f"picture is black at 8 bits: its {bits_of(picture, data)}-bit numbers stay below 1/16 of white"
        )
    file_format = picture.format or "unknown"
    keep = _KEPT.get(file_format) if is_plain and orientation == 1 and colours is None else None
    return Picture(levels, keep, file_format in _LOSSY_FORMATS, file_format, orientation, colours)


def decode_sketch(data: bytes, invert: SketchInversion = "auto") -> tuple[NDArray[np.uint8], bool]:
    """Edges (H, W) uint8, 255 on a line, else 0, and whether lines were taken to be dark. Raises RejectedItem.

    Lines are brighter than 0.6 (`invert` false) or not (true), what is transparent being no line. `auto`: bright where
    they cover at most half of the sketch, otherwise dark.
    """
    brightness, alpha = _brightness(data)
    bright = brightness * alpha > _EDGE
    dark = brightness * alpha + (1 - alpha) <= _EDGE
    if invert == "auto":
        invert = bool(bright.mean() > 0.5 or (not bright.any() and 0 < dark.mean() <= 0.5))
    return np.where(dark if invert else bright, np.uint8(255), np.uint8(0)), invert


def upright(values: NDArray[Any], picture: Picture, what: str) -> NDArray[Any]:
    """A condition (H, W) or (H, W, 3), turned with its picture where its size says that it lies like the file's pixels.

    Raises RejectedItem where the picture is turned and the size of the condition does not tell whether it is, too.
    """
    if picture.orientation == 1:
        return values
    size = picture.image.shape[:2]
    if is_sideways(picture.orientation) and (lies_like_file := _lies_like(values.shape, size)) is not None:
        if not lies_like_file:
            return values
        if values.ndim == 2:
            return turned(values, picture.orientation)
        raise RejectedItem(f"{what} lies like the file's pixels, which EXIF turns: store picture and {what} upright")
    raise RejectedItem(
        f"EXIF turns the picture (orientation {picture.orientation}), and the size of its {what} does not tell whether it "
        "is turned already: store the picture upright"
    )


def _lies_like(shape: tuple[int, ...], size: tuple[int, int]) -> bool | None:
    """Whether `shape` (H, W, ...) is that of a picture of `size` on its side; False: upright; None: nobody knows."""
    if shape[:2] in (size, size[::-1]) and size[0] != size[1]:
        return shape[:2] == size[::-1]
    as_upright, as_stored = (
        abs(float(np.log(shape[1] * high / (shape[0] * wide)))) for high, wide in (size, size[::-1])
    )
    return as_stored < as_upright if abs(as_stored - as_upright) > _TELLING else None


def _is_plain(picture: Image.Image, data: bytes) -> bool:
    """Whether any decoder makes the same 8-bit RGB of the file: nothing blended, widened or animated."""
    if picture.mode != "RGB" or "transparency" in picture.info or getattr(picture, "n_frames", 1) > 1:
        return False
    return bits_of(picture, data) == 8


def _pixels(picture: Image.Image, data: bytes) -> tuple[Image.Image, NDArray[np.uint8] | None]:
    """The pixels of a photograph as stored, of 8 bits, in L, RGB, CMYK or LAB, and how opaque they are (None: wholly)."""
    if picture.format in ("JPEG", "MPO") and picture.mode in ("L", "RGB"):
        return _jpeg_pixels(picture, data), None
    if picture.mode in _GREY_MODES:
        return _grey_pixels(read_samples(data))
    marked, bits = picture.info.get("transparency"), bits_of(picture, data)
    pixels = stored_pixels(picture)
    if picture.mode == "RGB" and marked is not None:
        return pixels, _opaque(np.asarray(pixels), marked, bits, data)
    if picture.mode in ("CMYK", "LAB", "RGB"):
        return pixels, None
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or marked is not None:
        if picture.mode == "La":
            pixels = pixels.convert("LA")
        pixels = pixels.convert("RGBA")
        return pixels.convert("RGB"), np.asarray(pixels)[..., 3]
    return pixels.convert("RGB"), None


def _jpeg_pixels(picture: Image.Image, data: bytes) -> Image.Image:
    """Pillow's levels. Raises RejectedItem where pixels are lost; an oddity that costs none is passed over."""
    try:
        grey = simplejpeg.decode_jpeg(data, "GRAY" if picture.mode == "L" else "RGB", strict=True)
        return Image.fromarray(grey[..., 0] if picture.mode == "L" else grey)
    except ValueError as complaint:
        pixels = stored_pixels(picture)
        if any(words in str(complaint) for words in _LOST_PIXELS):
            raise RejectedItem(f"picture is damaged ({complaint})") from complaint
        return pixels


def _grey_pixels(samples: Samples) -> tuple[Image.Image, NDArray[np.uint8] | None]:
    """8 bits of a grey photograph's numbers. Raises RejectedItem where nobody knows which of them is white."""
    values, largest = samples.values, samples.largest
    if largest is None:
        kind = "floating point values" if values.dtype.kind == "f" else f"numbers of {values.dtype}"
        raise RejectedItem(f"picture holds {kind} ({samples.found}), not a photograph: nobody knows which is white")
    scaled = values >> 8 if largest == 0xFFFF else (values.astype(np.uint32) * 255 + largest // 2) // largest
    levels = scaled.astype(np.uint8)
    alpha = None if samples.transparent is None else np.where(values == samples.transparent, np.uint8(0), np.uint8(255))
    return Image.fromarray(255 - levels if samples.is_zero_white else levels), alpha


def _opaque(levels: NDArray[np.uint8], marked: Any, bits: int, data: bytes) -> NDArray[np.uint8]:
    """uint8 (H, W), 0 where a PNG's pixels have the colour that it marks as transparent."""
    if bits == 16:  # of which Pillow has dropped the half
        whole = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
        if whole is None:
            raise RejectedItem("picture is damaged")
        is_marked = (np.asarray(whole)[..., 2::-1] == np.array(marked)).all(axis=2)
    else:
        is_marked = (levels == np.array(marked) & 255).all(axis=2)
    return np.where(is_marked, np.uint8(0), np.uint8(255))


def _laid_on_white(rgb: Image.Image, alpha: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """uint8 (H, W, 3)."""
    if alpha is not None:
        opaque = rgb.convert("RGBA")
        opaque.putalpha(Image.fromarray(np.ascontiguousarray(alpha)))
        rgb = Image.alpha_composite(Image.new("RGBA", rgb.size, (255, 255, 255, 255)), opaque).convert("RGB")
    return np.asarray(rgb, dtype=np.uint8)


def _brightness(data: bytes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How bright and how opaque the pixels of a sketch are, (H, W) in [0, 1], as stored."""
    picture = open_picture(data)
    if picture.mode in _GREY_MODES and picture.format not in ("JPEG", "MPO"):
        samples = read_samples(data)
        values, largest = samples.values.astype(np.float64), samples.largest
        if values.max() <= 1:  # 0 and 1, whatever the format could hold
            largest = 1
        if largest is None or values.min() < 0:
            raise RejectedItem(f"sketch holds {samples.found}: nobody knows which is white")
        values = 1 - values / largest if samples.is_zero_white else values / largest
        alpha = np.ones(values.shape) if samples.transparent is None else samples.values != samples.transparent
        return values, np.asarray(alpha, dtype=np.float64)
    pixels, opaque = _pixels(picture, data)
    grey = np.asarray((pixels if pixels.mode == "L" else pixels.convert("RGB")).convert("L")) / 255
    return grey, np.ones(grey.shape) if opaque is None else opaque / 255
