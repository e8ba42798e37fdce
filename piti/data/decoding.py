"""Stored samples back to arrays.

The fastest decoders that were found read here: libjpeg-turbo through simplejpeg, libdeflate, and OpenCV for the rest
(docs/performance.md). They may be lenient, since these files are ours and their hashes have been checked. Only what has
never been decoded (data.check headers, which the sample's JSON tells) is looked at as strictly as sharding would have
done.
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

from piti.data.conditions import StoredCondition, check_labels
from piti.data.geometry import CropBox
from piti.data.grey_png import decode_grey_png
from piti.data.items import RejectedItem
from piti.data.sources.pictures import PlainJpeg

_PICTURE_SUFFIXES = ("png", "jpg")
_JPEG_MAGIC = b"\xff\xd8\xff"


class DamagedPictureError(ValueError):
    """A stored file that does not decode, is missing, or has another shape than its set says. `str()` is the reason."""


def decode_image(members: Mapping[str, bytes]) -> NDArray[np.uint8]:
    """The picture of a sample: uint8 (H, W, 3) RGB. Raises DamagedPictureError where there is none or it does not decode."""
    for suffix in _PICTURE_SUFFIXES:
        if suffix in members:
            unchecked = suffix == "jpg" and _was_checked_by_headers(_record(members))
            return _decode_strictly(members[suffix]) if unchecked else decode_rgb(members[suffix])
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
    record = _record(members)
    if _was_checked_by_headers(record):
        whole = _decode_grey(members["cond.png"], None)
        _check_values(whole, record.get("num_classes"))
        values = _part(whole, box)
    else:
        values = _decode_grey(members["cond.png"], box)
    if "normal.png" not in members:
        return StoredCondition(values)
    normals = _part(_decode(members["normal.png"], cv2.IMREAD_UNCHANGED, "condition"), box)
    return StoredCondition(values, np.asarray(cv2.cvtColor(normals, cv2.COLOR_BGR2RGB), dtype=np.uint16))


@dataclass(frozen=True)
class LowResolution:
    """One degraded variant of a sample: uint8 (h, w, 3) RGB, and the crop it was made of (None: the whole picture)."""

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


def _decode_grey(data: bytes, box: CropBox | None) -> NDArray[Any]:
    values = decode_grey_png(data, box)
    return _part(_decode(data, cv2.IMREAD_UNCHANGED, "condition"), box) if values is None else values


def _record(members: Mapping[str, bytes]) -> dict[str, Any]:
    """What a sample's JSON says of it."""
    record: dict[str, Any] = json.loads(members.get("json", b"{}"))
    return record


def _was_checked_by_headers(record: Mapping[str, Any]) -> bool:
    return record.get("check") == "headers"


def _decode_strictly(data: bytes) -> NDArray[np.uint8]:
    try:
        return PlainJpeg(data, ()).decode()
    except RejectedItem as error:
        raise DamagedPictureError(str(error)) from error


def _check_values(values: NDArray[Any], num_classes: int | None) -> None:
    """Raise DamagedPictureError unless labels are among `num_classes` or unlabelled; None: these are no labels."""
    if num_classes is None:
        return
    try:
        check_labels(values, num_classes)
    except RejectedItem as error:
        raise DamagedPictureError(str(error)) from error


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
