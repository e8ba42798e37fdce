"""Photographs are resized as by Pillow, which the published code uses, and thin lines stay lines."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage import data

from piti.data.resizing import CropBox, crop_photograph, resize_edges, shrink_photograph


@pytest.mark.parametrize("side", [40, 64, 97, 300])
def test_crops_are_pillows_bicubic(side: int) -> None:
    image = data.astronaut()
    box = CropBox(left=31, top=7, side=side)
    whole = Image.fromarray(image).crop((31, 7, 31 + side, 7 + side))
    expected = np.asarray(whole.resize((64, 64), Image.Resampling.BICUBIC)).astype(int)
    difference = np.abs(crop_photograph(image, box, 64) - expected)
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.95


@pytest.mark.parametrize("geometry", ["squash", "center"])
def test_shrunk_pictures_are_pillows_bicubic(geometry: str) -> None:
    image = data.coffee()
    height, width = image.shape[:2]
    left = (width - height) // 2 if geometry == "center" else 0
    expected = Image.fromarray(image).crop((left, 0, width - left, height)).resize((128, 128), Image.Resampling.BICUBIC)
    difference = np.abs(shrink_photograph(image, geometry, 128) - np.asarray(expected).astype(int))  # type: ignore[arg-type]
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.95


@pytest.mark.parametrize("factor", [1.05, 1.25, 1.48, 1.75, 1.89, 1.95, 2.5, 4.1])
@pytest.mark.parametrize("angle_degrees", [0, 7, 30, 45, 62, 90])
def test_a_thin_line_stays_one_line(factor: float, angle_degrees: int) -> None:
    """A line one pixel wide across the picture: at the smaller size still in one piece, one or two pixels wide."""
    side = 240
    edges = np.zeros((side, side), dtype=np.uint8)
    along = np.array([np.cos(np.deg2rad(angle_degrees)), np.sin(np.deg2rad(angle_degrees))])
    first, last = (np.round(side / 2 + 0.5 + sign * 100 * along).astype(int) for sign in (-1, 1))
    cv2.line(edges, first.tolist(), last.tolist(), 255, 1)
    small = round(side / factor)
    resized = resize_edges(edges, small, small)
    assert set(np.unique(resized)) == {0, 255}
    assert cv2.connectedComponents(resized, connectivity=8)[0] == 2  # the ground and one line
    longest = np.abs(last - first).max() / factor
    assert 0.95 * longest <= np.count_nonzero(resized) <= 2.05 * longest
