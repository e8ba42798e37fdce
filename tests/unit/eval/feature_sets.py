"""Features made up for tests."""

from __future__ import annotations

import numpy as np
import torch

from eval import Features, NetworkIdentity

PUBLISHED = NetworkIdentity("InceptionV3 (FID)", "inception_v3", "6" * 64, True, "torch-fidelity")
STAND_IN = NetworkIdentity("EfficientNet-Lite0", "efficientnet_lite0", "5" * 64, False, "clean-fid")


def features(values: torch.Tensor, network: NetworkIdentity = PUBLISHED, side: int = 256) -> Features:
    """(N, D) as if a network had made them of pictures of `side` pixels."""
    return Features(values.double(), network, (side, side))


def gaussian(count: int, mean: float, deviation: np.ndarray, seed: int) -> torch.Tensor:
    """Draws of a Gaussian with independent features: float64 (count, D)."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(count, len(deviation), generator=generator, dtype=torch.float64)
    return normal * torch.from_numpy(deviation) + mean


def correlated(count: int, num_features: int, seed: int) -> torch.Tensor:
    """Draws whose features depend on each other and spread over three decades, as a network's do."""
    generator = torch.Generator().manual_seed(num_features)
    mix = torch.randn(num_features, num_features, generator=generator, dtype=torch.float64)
    mix *= torch.logspace(0, -3, num_features, dtype=torch.float64)[:, None]
    generator.manual_seed(seed)
    return torch.randn(count, num_features, generator=generator, dtype=torch.float64) @ mix + 0.3
