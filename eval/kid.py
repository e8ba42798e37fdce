"""Kernel distance between the feature distributions of two sets of pictures (Binkowski et al., ICLR 2018)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eval.features import FeatureExtractor, Features, check_comparable_sets, features_of
from eval.pictures import Metric, Pictures, normal_bounds

FEWEST_PICTURES = 3  # leaving one out must leave two
INTERVAL_FROM_PICTURES = 48  # see `kid_from_features`
_BLOCK_ROWS = 2048


def kid(generated: Pictures, truth: Pictures, extractor: FeatureExtractor) -> Metric:
    """Squared maximum mean discrepancy with the kernel (x.y / D + 1)^3: unbiased at any number of pictures.

    About 0 for equal distributions (it can be slightly negative), larger is worse. The whole sets are used at once,
    whose expectation is that of the published mean over subsets of 1000, with less noise.
    Raises ValueError for pictures of different sizes and for fewer than three in a set.
    """
    return kid_from_features(features_of(generated, extractor), features_of(truth, extractor))


def kid_from_features(generated: Features, truth: Features) -> Metric:
    """Kernel distance with its standard error by the jackknife, which errs towards too large an error.

    Raises ValueError as `kid` does, and for features of different networks.
    """
    name = generated.network.figure("kid", "kd")
    check_comparable_sets(generated, truth, name, FEWEST_PICTURES)
    a, b = generated.values, truth.values
    within_a, within_b = _row_sums(a, a, diagonal=False), _row_sums(b, b, diagonal=False)
    across_a, across_b = _row_sums(a, b), _row_sums(b, a)
    value = _distance(within_a, within_b, across_a)
    error = math.hypot(
        _jackknife_error(within_a, across_a, float(within_b.sum()), len(b)),
        _jackknife_error(within_b, across_b, float(within_a.sum()), len(a)),
    )
    smallest = min(len(a), len(b))
    if smallest < INTERVAL_FROM_PICTURES:
        note = f"unbiased; no interval: {smallest} pictures, fewer than {INTERVAL_FROM_PICTURES}"
        return Metric(name, value, standard_error=error, note=note, network=generated.network)
    low, high = normal_bounds(value, error)
    return Metric(name, value, low, high, error, "unbiased at any number of pictures", generated.network)


def _distance(within_a: Tensor, within_b: Tensor, across: Tensor) -> float:
    """From sums of kernels: of each picture of a, b with the others of its set, and of each of a with all of b."""
    n, m = len(within_a), len(within_b)
    same = within_a.sum() / (n * (n - 1)) + within_b.sum() / (m * (m - 1))
    return float(same - 2 * across.sum() / (n * m))


def _jackknife_error(within: Tensor, across: Tensor, other_total: float, m: int) -> float:
    """Standard error that stems from one set of n: the distance without each of its pictures, from sums alone."""
    n = len(within)
    without = (within.sum() - 2 * within) / ((n - 1) * (n - 2)) + other_total / (m * (m - 1))
    without = without - 2 * (across.sum() - across) / ((n - 1) * m)
    return float(((n - 1) / n * (without - without.mean()).square().sum()).sqrt())


def _row_sums(a: Tensor, b: Tensor, diagonal: bool = True) -> Tensor:
    """Sum of the kernel of each row of a with all of b, (N,); without `diagonal` a row is not paired with itself."""
    num_features = a.shape[1]
    sums = torch.cat([((rows @ b.T) / num_features + 1).pow(3).sum(dim=1) for rows in torch.split(a, _BLOCK_ROWS)])
    return sums if diagonal else sums - (a.square().sum(dim=1) / num_features + 1).pow(3)
