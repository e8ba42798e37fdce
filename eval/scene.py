"""Do pictures have the lines, depths and surfaces that were asked for?"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

TOLERANCE_SHARE = 0.0075  # of the diagonal, as in the benchmark BSDS500: 2.7 pixels at 256x256
NUM_PAIRS = 4096
_LEAST_DIFFERENCE_SHARE = 0.02  # of the range of depths in a picture: nearer pairs count as equally far


def edge_agreement(found: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> float:
    """F1 of two edge maps (H,W), not 0 on an edge: harmonic mean of the shares of each that lie near the other.

    Near is within 0.75 % of the diagonal; an edge may be matched by several. 1 is best, also for two empty maps.
    Raises ValueError for maps of different shapes.
    """
    if found.shape != wanted.shape:
        raise ValueError(f"edge maps differ in shape: {found.shape} and {wanted.shape}")
    if not found.any() or not wanted.any():
        return float(not found.any() and not wanted.any())
    reach = TOLERANCE_SHARE * math.hypot(*found.shape)
    precision, recall = _share_near(found, wanted, reach), _share_near(wanted, found, reach)
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def depth_order_error(found: NDArray[np.floating], wanted: NDArray[np.floating], known: NDArray[np.bool_]) -> float:
    """Share of pairs of pixels that are in the other order of depth than they should be; 0 is best, 0.5 is chance.

    found, wanted: (H,W), larger is farther, in any units, since only the order counts (Chen et al., NeurIPS 2016).
    4096 pairs are drawn, the same for pictures of one shape; those with an unknown pixel, and those whose wanted depths
    differ by less than 2 % of the range, do not count. NaN where no pair is left.
    """
    first, second = np.random.default_rng(0).integers(0, wanted.size, (2, NUM_PAIRS))
    depth, seen, usable = wanted.ravel().astype(np.float64), found.ravel().astype(np.float64), known.ravel()
    if not usable.any():
        return math.nan
    difference = depth[first] - depth[second]
    spread = float(np.ptp(depth[usable]))
    counted = usable[first] & usable[second] & (np.abs(difference) > _LEAST_DIFFERENCE_SHARE * spread)
    if not counted.any():
        return math.nan
    wrong = np.sign(seen[first] - seen[second])[counted] != np.sign(difference)[counted]
    return float(wrong.mean())


def normal_error_degrees(found: NDArray[np.floating], wanted: NDArray[np.floating], known: NDArray[np.bool_]) -> float:
    """Mean angle in degrees between two fields of directions (H,W,3) of any length, where `known`; 0 is best.

    NaN where nothing is known.
    """
    if not known.any():
        return math.nan
    a, b = (field[known].astype(np.float64) for field in (found, wanted))
    cosine = (a * b).sum(axis=1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean())


def _share_near(edges: NDArray[np.uint8], others: NDArray[np.uint8], reach_pixels: float) -> float:
    distance = cv2.distanceTransform((others == 0).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return float((distance[edges > 0] <= reach_pixels).mean())
