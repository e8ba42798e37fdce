"""Frechet distance between the feature distributions of two sets of pictures (Heusel et al., NeurIPS 2017)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eval.features import FeatureExtractor, Features, check_comparable_sets, features_of
from eval.pictures import Metric, Pictures, normal_bounds

INTERVAL_FROM_PICTURES_PER_FEATURE = 2
_ROUNDING_ALLOWED = 1e-6  # of the value, by which squaring the factors' product may be off


def fid(generated: Pictures, truth: Pictures, extractor: FeatureExtractor) -> Metric:
    """Frechet distance of two sets of uint8 RGB pictures; 0 for equal statistics, larger is worse.

    Called `fid` only if `extractor` is the published network. See `fid_from_features` for the interval and the bias
    of small sets. Raises ValueError for pictures of different sizes and for fewer than two in a set.
    """
    return fid_from_features(features_of(generated, extractor), features_of(truth, extractor))


def fid_from_features(generated: Features, truth: Features, published: str = "fid") -> Metric:
    """Frechet distance of two sets of features, computed in float64; `published` is its name in the published network.

    Every such distance is too high, the more so the fewer the pictures, and `note` says of how many they are. The
    interval is for the mean distance of other sets of as many pictures, not of infinitely many. It takes two pictures
    a feature: with fewer, covariances are too poor to say, and there is none.
    Raises ValueError as `fid` does, and for features of different networks.
    """
    name = generated.network.figure(published, "fd")
    check_comparable_sets(generated, truth, name, fewest=2)
    a, b = generated.values, truth.values
    value = max(0.0, frechet_distance(a, b))
    smallest, num_features = min(len(a), len(b)), a.shape[1]
    notes = [f"biased upwards, as all are that come from {smallest} pictures: compare it with figures of as many"]
    needed = INTERVAL_FROM_PICTURES_PER_FEATURE * num_features
    error = frechet_standard_error(a, b) if smallest >= needed else None
    if error is None:
        notes.append(f"no interval: that takes {needed} pictures ({num_features} features) that vary in every feature")
        return Metric(name, value, note="; ".join(notes), network=generated.network)
    low, high = normal_bounds(value, error)
    return Metric(name, value, max(0.0, low), high, error, "; ".join(notes), generated.network)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|mu_a - mu_b|^2 + Tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of features float64 (N,D) and (M,D), N and M at least 2.

    With factors F^T F = S, the trace of the root is the sum of the singular values of F_a F_b^T. They come from the
    eigenvalues of its square where that is exact enough, which is faster, and else from its decomposition: relative
    errors stay below 1e-6 also for nearly equal sets. Raises ValueError for features that are not finite, or so large
    that their squares are not: some libraries of linear algebra end the process for such numbers.
    """
    factor_a, factor_b = _factor(a), _factor(b)
    between = factor_a @ factor_b.T
    rest = (a.mean(dim=0) - b.mean(dim=0)).square().sum() + factor_a.square().sum() + factor_b.square().sum()
    if between.shape[0] < between.shape[1]:
        between = between.T
    square = between.T @ between
    if not bool(square.isfinite().all()):
        raise ValueError("features are not finite, or so large that their squares are not")
    roots = torch.linalg.eigvalsh(square).clamp(min=0).sqrt()
    value = float(rest - 2 * roots.sum())
    rounding = torch.finfo(roots.dtype).eps * roots.max().square()  # of the squares
    if float(torch.minimum(rounding / roots, rounding.sqrt()).sum()) > _ROUNDING_ALLOWED * value:
        value = float(rest - 2 * torch.linalg.svdvals(between).sum())
    return value


def frechet_standard_error(a: Tensor, b: Tensor) -> float | None:
    """Standard error of `frechet_distance` over fresh sets of N and M pictures, N and M above D.

    The delta method: a picture x of the first set moves the distance by (2 (mu_a - mu_b) + (1 - T) x) . x / N, where x
    is centred and T maps the first set's covariance to the second's; the second set's pictures alike with T^-1.
    None where a covariance is singular.
    """
    mean_a, mean_b = a.mean(dim=0), b.mean(dim=0)
    centred_a, centred_b = a - mean_a, b - mean_b
    factors = [torch.linalg.cholesky_ex(x.T @ x / (len(x) - 1), upper=True) for x in (centred_a, centred_b)]
    if any(int(factor.info) for factor in factors):
        return None
    factor_a, factor_b = (factor.L for factor in factors)
    between = factor_a @ factor_b.T
    squares, directions = torch.linalg.eigh(between.T @ between)
    roots = squares.clamp(min=torch.finfo(squares.dtype).eps * float(squares.max())).sqrt()
    moved_a = (centred_a @ factor_b.T @ directions).square() @ (1 / roots)
    moved_b = torch.linalg.solve_triangular(factor_b.T, centred_b.T, upper=False)
    moved_b = (moved_b.T @ directions).square() @ roots
    shift = mean_a - mean_b
    influence_a = 2 * centred_a @ shift + centred_a.square().sum(dim=1) - moved_a
    influence_b = -2 * centred_b @ shift + centred_b.square().sum(dim=1) - moved_b
    return math.sqrt(float(influence_a.var() / len(a) + influence_b.var() / len(b)))


def _factor(features: Tensor) -> Tensor:
    """F (at most D x D) with F^T F the covariance of features (N,D)."""
    centred = (features - features.mean(dim=0)) / math.sqrt(len(features) - 1)
    if len(centred) <= centred.shape[1]:
        return centred
    found = torch.linalg.cholesky_ex(centred.T @ centred, upper=True)
    factor: Tensor = found.L if int(found.info) == 0 else torch.linalg.qr(centred, mode="r").R
    return factor
