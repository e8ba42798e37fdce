"""The evaluation report: one self-contained HTML page made from plain data."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval.curves import LossCurve, loss_curve_uri
from eval.grid import PictureGrid, data_uri
from eval.pages import environment
from eval.pictures import Metric


@dataclass(frozen=True)
class MetricRow:
    """A measured figure with its heading and what it means in words.

    Args:
        better: "lower" or "higher".
        published: the score that it should reproduce, if somebody published one.
    """

    name: str
    meaning: str
    metric: Metric
    better: str = "lower"
    published: float | None = None

    @property
    def comparability(self) -> str:
        """What its network makes it good for, in words."""
        network = self.metric.network
        if network is None:
            return "needs no network"
        return "comparable with published figures" if network.comparable else "compares only with itself"


@dataclass(frozen=True)
class StageDistance:
    """How far one network's pictures are from the truth: perceptual, and root mean square in levels of 0..255.

    `lpips_gain`: by how much they are closer than the network's before, picture by picture; None for the first.
    """

    label: str
    lpips: Metric
    rmse: Metric
    lpips_gain: Metric | None = None


@dataclass(frozen=True)
class CheckpointFigures:
    """Figures by name of a checkpoint of the same run; `link` is to its report, None for the report itself."""

    step: int
    link: str | None
    metrics: Mapping[str, Metric]


@dataclass(frozen=True)
class DrawnInTraining:
    """A sheet of pictures that a run drew while it trained, as a PNG; `label` says which run and when."""

    label: str
    png: bytes

    @property
    def uri(self) -> str:
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class ReportData:
    """All that a report shows. Texts are plain, not HTML.

    Args:
        facts: (what, value) pairs: config, data, code commit, checkpoint, sampler, networks ...
        warnings: sentences that stand above everything else.
        comparison: distances to the truth from the least to the most trained network.
        grids: pictures side by side, each with its title and caption.
        data: (what, number) of the data behind it: samples, rejected items ...
        timings: (what, seconds).
        history: figures of checkpoints of the same run, by step; shown if there is more than one.
        drawn_in_training: sheets in the order of training.
        command: what reproduces the report, to be typed into a shell.
        seeds: (picture key, seed).
    """

    title: str
    subtitle: str
    facts: Sequence[tuple[str, str]]
    warnings: Sequence[str]
    metrics: Sequence[MetricRow]
    curves: Sequence[LossCurve]
    comparison: Sequence[StageDistance]
    grids: Sequence[PictureGrid]
    timings: Sequence[tuple[str, float]]
    config_text: str
    seeds: Sequence[tuple[str, int]]
    data: Sequence[tuple[str, str]] = ()
    command: str = ""
    history: Sequence[CheckpointFigures] = ()
    drawn_in_training: Sequence[DrawnInTraining] = ()


def render_report(report: ReportData) -> str:
    """The report as one HTML page: pictures, styles and curves inside it, nothing loaded from anywhere."""
    pages = environment()
    pages.filters |= {"data_uri": data_uri, "curve_uri": loss_curve_uri}
    worst = max((row.rmse.value for row in report.comparison), default=0.0)
    return pages.get_template("report.html.jinja").render(report=report, longest_bar=worst or 1.0)
