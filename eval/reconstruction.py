"""How exactly an upsampler restores pictures: peak signal-to-noise ratio and structural similarity."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from eval.pictures import Pictures, paired_batches
from eval.torchvision_operators import ensure_torchvision_importable

MOST_DECIBELS = 100.0  # equal pictures have no finite ratio


def reconstruction_qualities(generated: Pictures, truth: Pictures, batch_size: int = 32) -> NDArray[np.float64]:
    """PSNR in dB and SSIM of each picture against the truth at the same position: (N, 2). Larger is better.

    As torchmetrics computes them on RGB levels 0..255 (SSIM with its Gaussian window of 11 pixels). uint8 (N,H,W,3) or
    iterables of them. PSNR is cut at 100 dB. Raises ValueError if the two do not pair up.
    """
    ensure_torchvision_importable()
    from torchmetrics.functional.image import structural_similarity_index_measure

    found: list[torch.Tensor] = []
    for a, b in paired_batches(generated, truth, batch_size):
        error = (a.double() - b.double()).square().mean(dim=(1, 2, 3))
        decibels = (10 * torch.log10(255**2 / error)).clamp(max=MOST_DECIBELS)
        similarity = structural_similarity_index_measure(a.float(), b.float(), data_range=255.0, reduction="none")
        found.append(torch.stack([decibels, torch.as_tensor(similarity).double()], dim=1))
    return torch.cat(found).numpy() if found else np.empty((0, 2))
