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
from eval.pages import environment, measured_with
from eval.pictures import Metric

_PANEL_INCHES = (5.2, 3.4)
_BESIDE_SHARE = 0.045  # of the axis
_COLOUR, _BASELINE_COLOUR = "#2459b8", "#b8243f"  # as in the template


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

    def measured_with(self, column: StudyColumn) -> str:
        """The names of a column's figures, and how they were measured, in words."""
        found = [row.figures[column.key] for row in self.rows if column.key in row.figures]
        return f"{', '.join(dict.fromkeys(metric.name for metric in found))}: {measured_with(found)}"


def render_study(study: StudyData) -> str:
    """One HTML page: pictures, styles and plots inside it, nothing loaded from anywhere."""
    pages = environment()
    pages.filters |= {"data_uri": data_uri}
    plots = [
        (f"{column.heading} against {axis}", tradeoff_uri(study, column, axis))
        for axis in study.axes
        for column in study.columns
        if len({value for *_, value in _places(study, column, axis)}) > 1  # a figure that stays the same tells nothing
    ]
    return pages.get_template("study.html.jinja").render(study=study, plots=plots)


def _places(study: StudyData, column: StudyColumn, axis: str) -> list[tuple[int, float, float]]:
    """(number in the table from 0, place on the axis, value) of the variants that a plot shows."""
    return [
        (number, row.positions[axis], row.figures[column.key].value)
        for number, row in enumerate(study.rows)
        if axis in row.positions and column.key in row.figures
    ]


def tradeoff_figure(study: StudyData, column: StudyColumn, axis: str) -> Figure:
    """A figure of every variant over an axis, with its 95 % interval, marked by the variant's number in the table.

    Variants at one place are drawn beside each other. Names are shown as they are, never as formulas.
    """
    figure = Figure(figsize=_PANEL_INCHES, dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = _places(study, column, axis)
    at = [place for _, place, _ in places]
    step = _BESIDE_SHARE * ((max(at) - min(at)) or 1.0)
    for shown, (number, place, value) in enumerate(places):
        row = study.rows[number]
        metric = row.figures[column.key]
        low, high = (value, value) if metric.low is None or metric.high is None else (metric.low, metric.high)
        colour = _BASELINE_COLOUR if row.name == study.baseline else _COLOUR
        x = place + step * (at[:shown].count(place) - (at.count(place) - 1) / 2)
        error = [[max(0.0, value - low)], [max(0.0, high - value)]]
        axes.errorbar([x], [value], yerr=error, fmt="o", color=colour, capsize=3, markersize=13)
        axes.annotate(str(number + 1), (x, value), color="white", fontsize=8, ha="center", va="center_baseline", zorder=5)  # fmt: skip
    axes.set_xlabel(axis, parse_math=False)
    axes.set_ylabel(f"{column.heading} ({column.better} is better)", parse_math=False)
    axes.margins(x=0.1, y=0.12)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def tradeoff_uri(study: StudyData, column: StudyColumn, axis: str) -> str:
    """The plot as a `data:` URI of an SVG, for an `<img>`, in which nothing can run."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "piti"}):  # the same plot, the same bytes
        tradeoff_figure(study, column, axis).savefig(buffer, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"
