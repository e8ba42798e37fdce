"""The figures that an evaluation reports: what each is called, which way is better, and what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from eval.pictures import Metric, NetworkIdentity
from piti.config.tree import FigureKind


@dataclass(frozen=True)
class Figure:
    """A kind of figure.

    Args:
        published: its name where it was measured with the published network; `otherwise` with another.
        better: the direction of improvement.
        meaning: what it says, in words and with its unit.
    """

    published: str
    otherwise: str
    better: Literal["lower", "higher"]
    meaning: str

    def label(self, metric: Metric) -> str:
        """Heading of a metric of this kind: the published name only if it was earned."""
        earned = metric.network is None or metric.network.comparable
        return self.published if earned else self.otherwise


FIGURES: dict[FigureKind, Figure] = {
    "fid": Figure(
        "FID",
        "Fréchet distance",
        "lower",
        "distance between the feature statistics of the generated pictures and of the truth",
    ),
    "kid": Figure("KID", "Kernel distance", "lower", "the same with a polynomial kernel: squared mean discrepancy"),
    "lpips": Figure(
        "LPIPS",
        "Perceptual distance",
        "lower",
        "mean perceptual distance of each generated picture to its ground truth",
    ),
    "lpips_diversity": Figure(
        "LPIPS diversity",
        "Perceptual diversity",
        "higher",
        "mean perceptual distance between pictures of one condition",
    ),
}
"""By kind. A metric's own name says which network it was measured with: `fid`, or `fd_efficientnet_lite0`."""


def metric_to_json(metric: Metric) -> dict[str, Any]:
    """All that a metric carries, JSON-able; without what it does not have."""
    return {key: value for key, value in asdict(metric).items() if value is not None or key in ("low", "high")}


def metric_from_json(value: Mapping[str, Any]) -> Metric:
    """The inverse of `metric_to_json`."""
    network = value.get("network")
    return Metric(**{**value, "network": None if network is None else NetworkIdentity(**network)})
