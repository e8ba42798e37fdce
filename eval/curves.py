"""Loss curves as SVG for the page and as PNG for all else."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Points: TypeAlias = Sequence[tuple[float, float | None]]

LOG_FROM_RATIO = 4.0  # a loss that falls by more than this is drawn on a logarithmic axis
_SIZE_INCHES = (7.6, 4.0)
_TRAINING_COLOUR, _VALIDATION_COLOUR = "#8a93a3", "#2459b8"


@dataclass(frozen=True)
class LossCurve:
    """The losses of one training stage: (step, loss) of batches and of the fixed validation set.

    A loss of None (or not finite) is a gap. `begins_as` says what the network was before the first step.
    """

    name: str
    training: Points = ()
    validation: Points = ()
    begins_as: str = "untrained"

    @property
    def initial(self) -> float | None:
        """Validation loss before the first step (the first one recorded)."""
        return next((loss for _, loss in finite(self.validation)), None)

    @property
    def final(self) -> float | None:
        """The last validation loss."""
        return next((loss for _, loss in reversed(finite(self.validation))), None)

    @property
    def change_percent(self) -> float | None:
        """From initial to final, in percent of the initial loss; negative is better."""
        if self.initial is None or self.final is None or self.initial == 0:
            return None
        return 100 * (self.final - self.initial) / self.initial


def finite(points: Points) -> list[tuple[float, float]]:
    """The points that can be drawn."""
    return [(float(step), float(loss)) for step, loss in points if loss is not None and math.isfinite(loss)]


def loss_curve_png(curve: LossCurve) -> bytes:
    """The curve as a PNG of 760 x 400 pixels on white."""
    return _saved(curve, "png")


def loss_curve_uri(curve: LossCurve) -> str:
    """The curve as a `data:` URI of an SVG, for an `<img>`, in which nothing can run."""
    return f"data:image/svg+xml;base64,{base64.b64encode(_saved(curve, 'svg')).decode()}"


def loss_figure(curve: LossCurve) -> Figure:
    """The figure, on white. Names are never read as formulas."""
    figure = Figure(figsize=_SIZE_INCHES, dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    training, validation = finite(curve.training), finite(curve.validation)
    if training:
        axes.plot(*zip(*training, strict=True), color=_TRAINING_COLOUR, linewidth=1.2, label="training batches")
    if validation:
        axes.plot(*zip(*validation, strict=True), color=_VALIDATION_COLOUR, linewidth=2, marker="o", label="validation")
    losses = [loss for _, loss in training + validation]
    if losses and min(losses) > 0 and max(losses) / min(losses) > LOG_FROM_RATIO:
        axes.set_yscale("log")
    if losses:
        axes.legend(frameon=False)
    axes.set_title(curve.name, loc="left", parse_math=False)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _saved(curve: LossCurve, kind: str) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "piti"}):  # the same curve, the same bytes
        loss_figure(curve).savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()
