"""Any picture file becomes upright 8-bit RGB, or is refused with a reason; nothing is guessed or filled in."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from piti.data.items import RejectedItem
from piti.data.sources import measurements
from piti.data.sources.pictures import decode_picture, decode_sketch
from tests.unit.data.encoding import encoded


def test_damaged_exif_does_not_cost_the_photograph(small: np.ndarray) -> None:
    data = encoded(Image.fromarray(small), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff broken")
    assert decode_picture(data).image.shape == small.shape


def test_plain_files_are_kept_and_decode_alike_with_opencv(small: np.ndarray) -> None:
    for kind, suffix, tolerance in (("PNG", "png", 0), ("JPEG", "jpg", 2)):
        data = encoded(Image.fromarray(small), kind)
        picture = decode_picture(data)
        assert (picture.keep, picture.lossy) == (suffix, kind == "JPEG")
        other = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        assert np.abs(picture.image.astype(int) - other).max() <= tolerance


def test_transparency_is_laid_on_white(small: np.ndarray) -> None:
    alpha = np.zeros(small.shape[:2], np.uint8)
    alpha[:, :40] = 255
    rgba = Image.fromarray(np.dstack([small, alpha]))
    for picture in (rgba, rgba.convert("LA")):
        image = decode_picture(encoded(picture, "PNG")).image
        assert (image[:, 40:] == 255).all()
        np.testing.assert_array_equal(image[:, :40], np.asarray(picture.convert("RGB"))[:, :40])
    palette = Image.fromarray(small).quantize(8)
    transparent = decode_picture(encoded(palette, "PNG", transparency=0)).image
    assert (transparent[np.asarray(palette) == 0] == 255).all()


def test_first_frame_of_an_animation(small: np.ndarray) -> None:
    frames = [Image.fromarray(small), Image.fromarray(255 - small)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    picture = decode_picture(data)
    assert picture.keep is None
    assert np.abs(picture.image.astype(int) - small).mean() < 20


def test_plain_jpegs_give_pillows_levels_and_are_refused_where_pillow_refuses_them(small: np.ndarray) -> None:
    """Of 300 files with some bytes changed and 60 that were cut: read and checked as strictly as by Pillow."""
    data = encoded(Image.fromarray(small), "JPEG", quality=90)
    rng = np.random.default_rng(0)
    files = [data, *(data[: int(cut)] for cut in rng.integers(20, len(data), 60))]
    for _ in range(300):
        changed = bytearray(data)
        for place in rng.integers(2, len(data), 3):
            changed[place] = rng.integers(0, 256)
        files.append(bytes(changed))
    outcomes = {"read": 0, "refused": 0}
    for content in files:
        try:
            expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        except (OSError, SyntaxError, ValueError):
            with pytest.raises(RejectedItem):
                _ = decode_picture(content).image
            outcomes["refused"] += 1
            continue
        try:
            picture = decode_picture(content)
            np.testing.assert_array_equal(picture.image, expected)
            outcomes["read"] += 1
        except RejectedItem:  # a size that no longer makes sense, say
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 30


def test_what_is_no_photograph_is_refused(small: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RejectedItem, match="not a picture"):
        decode_picture(b"<html>404</html>" * 20)
    with pytest.raises(RejectedItem, match="only 8x60"):
        decode_picture(encoded(Image.fromarray(np.ascontiguousarray(small[:, :8])), "PNG"))
    with pytest.raises(RejectedItem, match="floating point"):
        decode_picture(encoded(Image.fromarray(small[..., 0].astype(np.float32)), "TIFF"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(RejectedItem, match="larger than 1000"):
        decode_picture(encoded(Image.fromarray(small), "PNG"))


def test_the_threshold_of_edges_and_the_ends_of_normals() -> None:
    grey = np.array([[0, 153, 154, 255]], dtype=np.uint8)
    np.testing.assert_array_equal(decode_sketch(encoded(Image.fromarray(grey), "PNG"), False)[0], [[0, 0, 255, 255]])
    normals = np.array([[[0, 0, 0], [255, 127, 0]]], dtype=np.uint8)
    decoded = measurements.normals(encoded(Image.fromarray(normals), "PNG"))
    np.testing.assert_allclose(decoded, [[[0, 0, 0], [1, -1 / 255, -1]]], atol=1e-6)
