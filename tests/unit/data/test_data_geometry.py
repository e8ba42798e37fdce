"""Crops of photographs are resized as the published code does it, with Pillow."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from skimage import data

from piti.data.geometry import CropBox, crop_photograph


@pytest.mark.parametrize("side", [40, 64, 97, 300])
def test_crops_are_pillows_bicubic(side: int) -> None:
    image = data.astronaut()
    box = CropBox(left=31, top=7, side=side)
    whole = Image.fromarray(image).crop((31, 7, 31 + side, 7 + side))
    expected = np.asarray(whole.resize((64, 64), Image.Resampling.BICUBIC)).astype(int)
    difference = np.abs(crop_photograph(image, box, 64) - expected)
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.95
