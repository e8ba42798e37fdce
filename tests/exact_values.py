"""How far computed values are from exact ones."""

from __future__ import annotations

from torch import Tensor


def relative_error(ours: Tensor, exact: Tensor) -> float:
    """The largest difference, of the largest exact value; `exact` is float64, of the same shape."""
    exact = exact.detach()
    return float((ours.detach().double() - exact).abs().max() / exact.abs().max())
