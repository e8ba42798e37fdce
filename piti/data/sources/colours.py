"""Photographs in other colours than sRGB: their embedded profile is applied, so that numbers mean what people see."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK", "LAB": "Lab"}
_NO_DIFFERENCE = 2  # levels: a profile that changes colours by no more is sRGB, however it is called
CONVERTED = "converted to sRGB from the embedded profile"


def to_srgb(pixels: Image.Image, profile: bytes | None) -> tuple[Image.Image, str | None]:
    """Pixels (mode L, RGB, CMYK or LAB) in sRGB, and what was done about their profile (None: nothing).

    Where the profile cannot be used the text begins with `unusable`, and the colours are taken for sRGB.
    """
    if profile is None and pixels.mode != "LAB":
        return pixels.convert("RGB"), None
    space, problem = _space(profile or b"")
    if pixels.mode == "L" and space == "RGB":  # grey pictures with the profile of their program
        pixels = pixels.convert("RGB")
    if pixels.mode == "LAB" and profile is None:
        transform, problem = _transform(None, "LAB"), None
    elif problem is None and space == _SPACES[pixels.mode]:
        transform = _transform(profile, pixels.mode)
    else:
        transform = None
        problem = problem or f"it is for {space}, the picture is {pixels.mode}"
    if problem is not None:
        plain = pixels.convert("RGB") if pixels.mode != "LAB" else pixels.getchannel(0).convert("RGB")
        return plain, f"unusable colour profile ({problem})"
    if transform is None:
        return pixels.convert("RGB"), None
    converted = ImageCms.applyTransform(pixels, transform)
    return converted or pixels, CONVERTED


@lru_cache(maxsize=64)
def _space(profile: bytes) -> tuple[str, str | None]:
    """The colour space of a profile, or what is wrong with it."""
    try:
        space = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space.strip()
        for mode in (mode for mode, name in _SPACES.items() if name == space):
            _transform(profile, mode)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        return "", " ".join(str(error).split()) or type(error).__name__
    return space, None


@lru_cache(maxsize=64)
def _transform(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile (None: Lab) to sRGB; None where that changes next to nothing. Raises PyCMSError."""
    source = ImageCms.createProfile("LAB") if profile is None else ImageCms.ImageCmsProfile(io.BytesIO(profile))
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode == "RGB":
        steps = np.linspace(0, 255, 17).astype(np.uint8)
        colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(17, -1, 3)
        probe = ImageCms.applyTransform(Image.fromarray(colours), transform)
        if np.abs(np.asarray(probe, dtype=np.int16) - colours).max() <= _NO_DIFFERENCE:
            return None
    return transform
