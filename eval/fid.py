"""Fréchet distance between the feature distributions of two sets of pictures (Heusel et al., NeurIPS 2017)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from eval.features import FeatureExtractor, features_of
from eval.pictures import Metric, Pictures, percentile_bounds
from eval.torchvision_operators import ensure_torchvision_importable

UNBIASED_FROM_PICTURES = 2048


def fid(
    generated: Pictures, truth: Pictures, extractor: FeatureExtractor, *, bootstrap_samples: int = 200, seed: int = 0
) -> Metric:
    """Fréchet inception distance of two sets of uint8 RGB pictures; 0 for equal statistics, larger is worse.

    The value is torchmetrics', in float64. See `fid_from_features` for the interval and the bias of small sets.
    Raises ValueError for fewer than two pictures in a set.
    """
    return fid_from_features(
        features_of(generated, extractor), features_of(truth, extractor), bootstrap_samples=bootstrap_samples, seed=seed
    )


def fid_from_features(generated: Tensor, truth: Tensor, *, bootstrap_samples: int = 200, seed: int = 0) -> Metric:
    """Fréchet distance of features float64 (N,D) and (M,D).

    Both sets are resampled `bootstrap_samples` times. A resample has fewer distinct pictures and so a larger
    distance than the set itself; the interval is therefore the resamples' spread about their own mean, put at the
    value (never below 0). Below 2048 pictures the value itself is noticeably too high, and `note` says so.
    """
    for features in (generated, truth):
        if len(features) < 2:
            raise ValueError(f"FID needs at least 2 pictures in a set, there is {len(features)}")
    value = _torchmetrics_fid(generated, truth)
    rng = np.random.default_rng(seed)
    estimates = np.array(
        [frechet_distance(_resample(generated, rng), _resample(truth, rng)) for _ in range(bootstrap_samples)]
    )
    low, high = percentile_bounds(estimates - estimates.mean()) if estimates.size else (math.nan, math.nan)
    smallest = min(len(generated), len(truth))
    note = None
    if smallest < UNBIASED_FROM_PICTURES:
        note = f"biased upwards: {smallest} pictures, fewer than {UNBIASED_FROM_PICTURES}"
    return Metric(value, max(0.0, value + low), value + high, note)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|mu_a - mu_b|^2 + Tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of features float64 (N,D) and (M,D), N and M at least 2.

    With centred features A^T A = S_a and B^T B = S_b, the trace of the root is the sum of the singular values of
    A B^T, an N x M matrix: for fewer pictures than features far cheaper than the root of a D x D product. Otherwise
    A and B are first replaced by the D x D factors of their QR decompositions.
    """
    factors = []
    for features in (a, b):
        centred = (features - features.mean(dim=0)) / math.sqrt(len(features) - 1)
        factors.append(torch.linalg.qr(centred, mode="r").R if len(centred) > centred.shape[1] else centred)
    factor_a, factor_b = factors
    root_trace = torch.linalg.svdvals(factor_a @ factor_b.T).sum()
    mean_term = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    return float(mean_term + factor_a.square().sum() + factor_b.square().sum() - 2 * root_trace)


class _AlreadyFeatures(nn.Module):
    """What torchmetrics takes for a network: the features were computed before."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _torchmetrics_fid(generated: Tensor, truth: Tensor) -> float:
    ensure_torchvision_importable()
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_AlreadyFeatures(generated.shape[1]))
    update: Callable[..., None] = metric.update
    update(truth, real=True)
    update(generated, real=False)
    return max(0.0, float(metric.compute()))


def _resample(features: Tensor, rng: np.random.Generator) -> Tensor:
    return features[torch.from_numpy(rng.integers(0, len(features), len(features)))]
