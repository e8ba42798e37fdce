"""Precision and recall of generated pictures by nearest neighbours in features (Kynkaanniemi et al., NeurIPS 2019)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from eval.features import Features, check_comparable_sets
from eval.pictures import Metric

NEIGHBOURS = 3
_BLOCK_ROWS = 1024


def precision_from_features(generated: Features, truth: Features) -> Metric:
    """Share of generated pictures that look like the truth: that lie within a true picture's distance to its third neighbour.

    1 is best. Raises ValueError for sets that do not compare, and for fewer than four pictures in one.
    """
    return _share("precision", generated, truth)


def recall_from_features(generated: Features, truth: Features) -> Metric:
    """Share of true pictures that the generated ones cover; a collapse shows here. 1 is best. Raises as precision does."""
    return _share("recall", generated, truth)


def _share(name: Literal["precision", "recall"], generated: Features, truth: Features) -> Metric:
    name_ = generated.network.figure(name, name)
    check_comparable_sets(generated, truth, name_, NEIGHBOURS + 1)
    points, balls = (generated, truth) if name == "precision" else (truth, generated)
    note = f"depends on the number of pictures ({len(generated)} and {len(truth)}): compare with figures of as many; no interval"
    return Metric(name_, share_covered(points.values, balls.values), note=note, network=generated.network)


def share_covered(points: Tensor, balls: Tensor) -> float:
    """Share of points (N,D) in at least one ball about a point (M,D), whose radius is the distance to its third neighbour."""
    radii = torch.cat(
        [torch.cdist(rows, balls).kthvalue(NEIGHBOURS + 1, dim=1).values for rows in torch.split(balls, _BLOCK_ROWS)]
    )  # each point is its own nearest
    inside = [(torch.cdist(rows, balls) <= radii).any(dim=1) for rows in torch.split(points, _BLOCK_ROWS)]
    return float(torch.cat(inside).double().mean())
