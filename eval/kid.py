"""Kernel distance between the feature distributions of two sets of pictures (Binkowski et al., ICLR 2018)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from eval.features import FeatureExtractor, features_of
from eval.pictures import Metric, Pictures, percentile_bounds

_BLOCK_ROWS = 2048


def kid(
    generated: Pictures, truth: Pictures, extractor: FeatureExtractor, *, bootstrap_samples: int = 200, seed: int = 0
) -> Metric:
    """Squared maximum mean discrepancy with the kernel (x.y / D + 1)^3: unbiased at any number of pictures.

    About 0 for equal distributions (it can be slightly negative), larger is worse. The whole sets are used at once,
    whose expectation is that of the published mean over subsets of 1000, with less noise.
    Raises ValueError for fewer than four pictures in a set.
    """
    return kid_from_features(
        features_of(generated, extractor), features_of(truth, extractor), bootstrap_samples=bootstrap_samples, seed=seed
    )


def kid_from_features(generated: Tensor, truth: Tensor, *, bootstrap_samples: int = 200, seed: int = 0) -> Metric:
    """Kernel distance of features float64 (N,D) and (M,D).

    Resampling with replacement would compare pictures with themselves, so the interval comes from random halves
    (without replacement) of both sets: their variance estimates that of the whole sets' value.
    """
    for features in (generated, truth):
        if len(features) < 4:
            raise ValueError(f"KID needs at least 4 pictures in a set, there are {len(features)}")
    value = kernel_distance(generated, truth)
    rng = np.random.default_rng(seed)
    estimates = np.array([kernel_distance(_half(generated, rng), _half(truth, rng)) for _ in range(bootstrap_samples)])
    low, high = percentile_bounds(estimates - estimates.mean())
    return Metric(value, value + low, value + high)


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy of features (N,D) and (M,D)."""
    within = _kernel_sum(a, a, diagonal=False) / (len(a) * (len(a) - 1))
    within += _kernel_sum(b, b, diagonal=False) / (len(b) * (len(b) - 1))
    return within - 2 * _kernel_sum(a, b, diagonal=True) / (len(a) * len(b))


def _kernel_sum(a: Tensor, b: Tensor, diagonal: bool) -> float:
    """Sum of the kernel over all pairs; without `diagonal`, over pairs of different pictures of one set."""
    num_features = a.shape[1]
    total = 0.0
    for rows in torch.split(a, _BLOCK_ROWS):
        total += float(((rows @ b.T) / num_features + 1).pow(3).sum())
    if not diagonal:
        total -= float((a.square().sum(dim=1) / num_features + 1).pow(3).sum())
    return total


def _half(features: Tensor, rng: np.random.Generator) -> Tensor:
    return features[torch.from_numpy(rng.permutation(len(features))[: len(features) // 2])]
