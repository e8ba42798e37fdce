"""Distance in pixels: needs no network, so it says something also where none with published weights is at hand."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from eval.pictures import Pictures, paired_batches


def pixel_distances(generated: Pictures, truth: Pictures, batch_size: int = 64) -> NDArray[np.float64]:
    """Each picture's root mean square difference to the truth at the same position, (N,), in levels of 0..255.

    uint8 (N,H,W,3) or iterables of them. 0 for equal pictures. Raises ValueError if the two do not pair up.
    """
    pairs = paired_batches(generated, truth, batch_size)
    distances = [(a.double() - b.double()).square().mean(dim=(1, 2, 3)).sqrt() for a, b in pairs]
    return torch.cat(distances).numpy() if distances else np.empty(0)
