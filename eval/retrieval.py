"""Do pictures follow their conditions? Each should be nearer to its own truth than to most others'."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

SIDE_PIXELS = 16


def truth_ranks(pictures: NDArray[np.uint8], truths: NDArray[np.uint8]) -> NDArray[np.int64]:
    """For each picture, how many truths of other pictures are nearer to it than its own: (N,), 0 for the best.

    pictures, truths: uint8 (N, H, W, 3), in the same order; distances are root mean squares at 16x16 pixels. Of N
    pictures that ignore their conditions, a share k / N has a rank below k.
    """
    small, wanted = (
        np.stack([cv2.resize(row, (SIDE_PIXELS, SIDE_PIXELS), interpolation=cv2.INTER_AREA).ravel() for row in rows])
        for rows in (pictures, truths)
    )
    distances = cdist(small, wanted, "sqeuclidean")
    return np.asarray((distances < distances.diagonal()[:, None]).sum(axis=1), dtype=np.int64)
