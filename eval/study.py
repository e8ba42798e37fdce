"""The page of a study: variants of one pipeline side by side, with intervals, differences and trade-offs."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from eval.grid import PictureGrid, data_uri
from eval.pages import environment
from eval.pictures import Metric

_PANEL_INCHES = (5.2, 3.6)
_COLOUR, _BASELINE_COLOUR = "#2459b8", "#b8243f"


@dataclass(frozen=True)
class StudyColumn:
    """A figure that variants are compared by: its key in `StudyRow.figures`, heading, and "lower" or "higher"."""

    key: str
    heading: str
    better: str


@dataclass(frozen=True)
class StudyRow:
    """A variant. Texts are plain, not HTML.

    Args:
        settings: what it changes, in words.
        figures, differences: by column; a difference is to the baseline, on the same conditions and noise.
        links: (text, address) of its reports.
        positions: its place on each of the study's axes; axes that it has none on are missing.
    """

    name: str
    settings: str
    figures: Mapping[str, Metric]
    differences: Mapping[str, Metric] = field(default_factory=dict)
    links: Sequence[tuple[str, str]] = ()
    positions: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyData:
    """All that the page shows. `axes`: what figures are plotted against. `command` makes it again."""

    title: str
    question: str
    baseline: str
    columns: Sequence[StudyColumn]
    rows: Sequence[StudyRow]
    axes: Sequence[str] = ()
    grid: PictureGrid | None = None
    warnings: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()
    command: str = ""


def render_study(study: StudyData) -> str:
    """One HTML page: pictures, styles and plots inside it, nothing loaded from anywhere."""
    pages = environment()
    pages.filters |= {"data_uri": data_uri}
    plots = [
        (f"{column.heading} against {axis}", tradeoff_uri(study, column, axis))
        for axis in study.axes
        for column in study.columns
        if sum(axis in row.positions and column.key in row.figures for row in study.rows) > 1
    ]
    return pages.get_template("study.html.jinja").render(study=study, plots=plots)


def tradeoff_figure(study: StudyData, column: StudyColumn, axis: str) -> Figure:
    """A figure of every variant over an axis, with its 95 % interval. Names are shown as they are, never as formulas."""
    figure = Figure(figsize=_PANEL_INCHES, dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for row in study.rows:
        metric = row.figures.get(column.key)
        if metric is None or axis not in row.positions:
            continue
        below, above = (
            (metric.value - metric.low, metric.high - metric.value)
            if metric.low is not None and metric.high is not None
            else (0.0, 0.0)
        )
        colour = _BASELINE_COLOUR if row.name == study.baseline else _COLOUR
        place = row.positions[axis]
        error = [[max(0.0, below)], [max(0.0, above)]]
        axes.errorbar([place], [metric.value], yerr=error, fmt="o", color=colour, capsize=3)
        axes.annotate(row.name, (place, metric.value), (5, 4), textcoords="offset points", fontsize=8, parse_math=False)
    axes.set_xlabel(axis, parse_math=False)
    axes.set_ylabel(f"{column.heading} ({column.better} is better)", parse_math=False)
    axes.margins(x=0.2, y=0.15)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def tradeoff_uri(study: StudyData, column: StudyColumn, axis: str) -> str:
    """The plot as a `data:` URI of an SVG, for an `<img>`, in which nothing can run."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "piti"}):  # the same plot, the same bytes
        tradeoff_figure(study, column, axis).savefig(buffer, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"
