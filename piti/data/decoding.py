"""Stored samples back to arrays.

JPEGs are read by libjpeg-turbo through simplejpeg, everything else by OpenCV. Both may be lenient: these files are ours,
and their hashes have been checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from piti.data.conditions import StoredCondition
from piti.data.resizing import CropBox

_PICTURE_SUFFIXES = ("png", "jpg")
_JPEG_MAGIC = b"\xff\xd8\xff"


class DamagedPictureError(ValueError):
    """A stored file that does not decode, is missing, or has another shape than its set says. `str()` is the reason."""


def decode_image(members: Mapping[str, bytes]) -> NDArray[np.uint8]:
    """The picture of a sample: uint8 (H, W, 3) RGB. Raises DamagedPictureError where there is none or it does not decode."""
    for suffix in _PICTURE_SUFFIXES:
        if suffix in members:
            return decode_rgb(members[suffix])
    raise DamagedPictureError("sample holds no picture")


def decode_rgb(data: bytes) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) RGB from a PNG or JPEG. Raises DamagedPictureError where it does not decode."""
    if data.startswith(_JPEG_MAGIC):
        return _decode_jpeg(data)
    return _decode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)


def decode_condition(members: Mapping[str, bytes], box: CropBox | None = None) -> StoredCondition:
    """The condition of a sample in `box` (None: the whole).

    Raises DamagedPictureError where it is missing or does not decode.
    """
    if "cond.png" not in members:
        raise DamagedPictureError("sample holds no condition")
    values = _part(_decode(members["cond.png"], cv2.IMREAD_UNCHANGED, "condition"), box)
    if "normal.png" not in members:
        return StoredCondition(values)
    normals = _part(_decode(members["normal.png"], cv2.IMREAD_UNCHANGED, "condition"), box)
    return StoredCondition(values, np.asarray(cv2.cvtColor(normals, cv2.COLOR_BGR2RGB), dtype=np.uint16))


@dataclass(frozen=True)
class LowResolution:
    """One degraded variant of a picture: uint8 (h, w, 3) RGB, and the part of the picture it shows (None: all of it)."""

    image: NDArray[np.uint8]
    box: CropBox | None


def num_variants(members: Mapping[str, bytes]) -> int:
    """How many degraded variants a companion sample holds: none where its picture is damaged."""
    return sum(suffix.startswith("lr") and suffix.endswith(".png") for suffix in members)


def decode_variant(members: Mapping[str, bytes], variant: int) -> LowResolution:
    """A variant of a companion sample. Raises DamagedPictureError where it is missing or does not decode."""
    try:
        about = json.loads(members["json"])["variants"][variant]
        crop = about["crop"]
        return LowResolution(decode_rgb(members[f"lr{variant}.png"]), None if crop is None else CropBox(*crop))
    except (KeyError, IndexError, json.JSONDecodeError) as error:
        raise DamagedPictureError(f"companion sample holds no variant {variant}") from error


def _part(values: NDArray[Any], box: CropBox | None) -> NDArray[Any]:
    return values if box is None else box.cut(values)


def _decode_jpeg(data: bytes) -> NDArray[np.uint8]:
    try:
        return np.asarray(simplejpeg.decode_jpeg(data, "RGB", strict=False), dtype=np.uint8)
    except ValueError as error:
        raise DamagedPictureError(f"picture does not decode ({error})") from error


def _decode(data: bytes, flags: int, what: str = "picture") -> NDArray[Any]:
    decoded = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags) if data else None
    if decoded is None:
        raise DamagedPictureError(f"{what} does not decode")
    return np.asarray(decoded)
