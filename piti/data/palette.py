"""Label maps of photographs that come without one: a class for each of 64 colours, in flat regions."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

NUM_CLASSES = 64
_GRID = 64  # a region's outline is a multiple of 1/64 of the picture's side
_MEDIAN = 5  # cells a side: smaller specks join their surroundings

PALETTE: dict[str, Any] = {"name": "palette", "grid": _GRID, "median": _MEDIAN, "library": "opencv", "version": 1}


def palette_labels(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) RGB -> labels uint8 (H, W) in 0..63: which quarter of its range each channel is in.

    The picture is averaged over a 64x64 grid and median-filtered first. Ids are such that the published colours
    (`label_colors`) paint a label with the lower ends of its quarters: 0, 64, 128 or 192 for each channel. Only
    the darkest class, 63, is painted (32, 0, 0), since no label has the published scheme's black.
    """
    height, width = image.shape[:2]
    cells = cv2.resize(image, (_GRID, _GRID), interpolation=cv2.INTER_AREA)
    quarters = np.asarray(cv2.medianBlur(cells, _MEDIAN), dtype=np.uint8) >> 6
    high, low = quarters >> 1, quarters & 1
    code = (high + (low << 3)) @ np.array([1, 2, 4], dtype=np.uint8)
    labels = np.where(code == 0, NUM_CLASSES - 1, code.astype(np.int64) - 1).astype(np.uint8)
    return np.asarray(cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST), dtype=np.uint8)
