"""The evaluation report: one self-contained HTML page made from plain data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from eval.curves import LossCurve, loss_curve_uri
from eval.grid import PictureGrid, data_uri
from eval.pictures import Metric

_MISSING = "–"


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
class ReportData:
    """All that a report shows. Texts are plain, not HTML.

    Args:
        facts: (what, value) pairs: config, data, code commit, checkpoint, sampler, networks ...
        warnings: sentences that stand above everything else.
        comparison: distances to the truth from the least to the most trained network.
        grids: pictures side by side, each with its title and caption.
        data: (what, number) of the data behind it: samples, rejected items ...
        timings: (what, seconds).
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


def render_report(report: ReportData) -> str:
    """The report as one HTML page: pictures, styles and curves inside it, nothing loaded from anywhere."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": format_number,
        "percent": format_percent,
        "duration": format_duration,
        "data_uri": data_uri,
        "curve_uri": loss_curve_uri,
        "interval": format_interval,
    }
    worst = max((row.rmse.value for row in report.comparison), default=0.0)
    template = environment.get_template("report.html.jinja")
    return template.render(report=report, longest_bar=worst or 1.0)


def format_number(value: float | None) -> str:
    """Four significant digits; a dash for None and for what is not finite."""
    if value is None or not math.isfinite(value):
        return _MISSING
    return f"{value:.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def format_interval(metric: Metric) -> str:
    """The 95 % interval, or that there is none."""
    if metric.low is None or metric.high is None:
        return "no interval"
    return f"{format_number(metric.low)} to {format_number(metric.high)}"


def format_percent(value: float | None) -> str:
    """A signed whole percentage with a true minus sign; a dash for None and for what is not finite."""
    if value is None or not math.isfinite(value):
        return _MISSING
    return f"{value:+.0f} %".replace("-", "−")


def format_duration(seconds: float | None) -> str:
    """`42 s`, `3 min 05 s`, `2 h 10 min`; a dash for None and for what is not finite."""
    if seconds is None or not math.isfinite(seconds):
        return _MISSING
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
