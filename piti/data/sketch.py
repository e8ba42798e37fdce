"""Sketches detected in photographs: by HED as published, or by a Canny-type detector, which needs no weights."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from piti.config import SketchConfig
from piti.data.hed import hed_edges, hed_record

_BLUR_SIGMA_PIXELS = 1.0
_STRONG_SHARE = 0.9  # a gradient stronger than this share of all pixels' begins an edge
_WEAK_TO_STRONG = 0.4
_FLOOR = 24.0  # gradient magnitude (Sobel 3x3, 8-bit grey) below which nothing is an edge, however flat the picture

DETECTOR: dict[str, Any] = {
    "name": "canny", "library": "opencv", "blur_sigma_pixels": _BLUR_SIGMA_PIXELS, "strong_share": _STRONG_SHARE,
    "weak_to_strong": _WEAK_TO_STRONG, "floor": _FLOOR, "version": 2,
}  # fmt: skip


def detect_sketch(image: NDArray[np.uint8], sketch: SketchConfig) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) RGB -> edges uint8 (H, W), 255 on an edge, else 0, by the configured detector.

    Raises CheckpointError where HED's weights cannot be used.
    """
    if sketch.detector == "canny":
        return detect_edges(image)
    return hed_edges(image, sketch)


def sketch_record(sketch: SketchConfig) -> dict[str, Any]:
    """The detector and its settings, as each sample's JSON holds them. Raises CheckpointError as `detect_sketch` does."""
    if sketch.detector == "canny":
        return DETECTOR
    return hed_record(sketch)


def detect_edges(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) RGB -> edges uint8 (H, W), 255 on an edge, else 0.

    Thresholds follow the picture's own gradients, so that dark and flat photographs get a sketch too. The published
    sketches are HED's, binarised; this detector needs no weights.
    """
    grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (0, 0), _BLUR_SIGMA_PIXELS)
    across, down = cv2.spatialGradient(grey)  # Sobel 3x3
    some_across, some_down = (part[::2, ::2].astype(np.float32) for part in (across, down))  # a quarter suffices
    magnitude = cv2.magnitude(some_across, some_down).astype(np.uint16)
    strong = max(float(np.quantile(magnitude, _STRONG_SHARE, method="inverted_cdf")), _FLOOR)
    return np.asarray(cv2.Canny(across, down, _WEAK_TO_STRONG * strong, strong, L2gradient=True), dtype=np.uint8)
