"""Loss curves as pictures: inline SVG for the report, PNG for everything that shows no SVG."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias
from xml.sax.saxutils import escape

Points: TypeAlias = Sequence[tuple[float, float | None]]

WIDTH, HEIGHT = 460, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 52, 14, 34
LOG_FROM_RATIO = 4.0  # a loss that falls by more than this is drawn on a logarithmic axis
_TICK_STEPS = (1, 2, 2.5, 5, 10)


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


def loss_curve_svg(curve: LossCurve) -> str:
    """The curve as an `<svg>` element; colours come from the page's classes, so that it follows light and dark."""
    training, validation = finite(curve.training), finite(curve.validation)
    drawn = training + validation
    if not drawn:
        return '<p class="quiet">No losses were recorded.</p>'
    x_axis = _Axis.over([step for step, _ in drawn] + [0.0], LEFT, WIDTH - RIGHT, log=False)
    losses = [loss for _, loss in drawn]
    log = min(losses) > 0 and max(losses) / min(losses) > LOG_FROM_RATIO
    y_axis = _Axis.over(losses, HEIGHT - BOTTOM, TOP, log=log)
    parts = [
        f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="loss curve of {escape(curve.name)}">'
    ]
    for tick in y_axis.ticks():
        y = y_axis.place(tick)
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 6}" y="{y + 3.5:.1f}">{tick:g}</text>')
    for tick in x_axis.ticks():
        parts.append(f'<text class="tick mid" x="{x_axis.place(tick):.1f}" y="{HEIGHT - BOTTOM + 15}">{tick:g}</text>')
    parts.append(f'<text class="tick mid" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 4}">optimizer step</text>')
    for points, kind in ((training, "train"), (validation, "valid")):
        places = [(x_axis.place(step), y_axis.place(loss)) for step, loss in points]
        if places:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            parts.append(f'<polyline class="{kind}" points="{path}"/>')
        if kind == "valid":
            parts += [f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places]
            if places:
                x, y = places[-1]
                parts.append(f'<text class="label" x="{x + 7:.1f}" y="{y + 4:.1f}">{validation[-1][1]:.3g}</text>')
    parts.append("</svg>")
    return "".join(parts)


def loss_curve_png(curve: LossCurve) -> bytes:
    """The curve as a PNG of 760 x 400 pixels on white."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 4.0), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    training, validation = finite(curve.training), finite(curve.validation)
    if training:
        axes.plot(*zip(*training, strict=True), color="#a8b0bd", linewidth=1.2, label="training batches")
    if validation:
        axes.plot(*zip(*validation, strict=True), color="#2f6fdb", linewidth=2, marker="o", label="validation")
    losses = [loss for _, loss in training + validation]
    if losses and min(losses) > 0 and max(losses) / min(losses) > LOG_FROM_RATIO:
        axes.set_yscale("log")
    if losses:
        axes.legend(frameon=False)
    axes.set_title(curve.name, loc="left")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


@dataclass(frozen=True)
class _Axis:
    """Maps values low..high to pixels begin..end, linearly or by logarithm."""

    low: float
    high: float
    begin: float
    end: float
    log: bool

    @classmethod
    def over(cls, values: Sequence[float], begin: float, end: float, log: bool) -> _Axis:
        low, high = min(values), max(values)
        if log:
            return cls(low / 1.1, high * 1.1, begin, end, True)
        margin = 0.06 * (high - low) or max(abs(high), 1.0) * 0.1
        below = 0.0 if low >= 0 and low < 0.3 * high else low - margin
        return cls(below, high if begin < end else high + margin, begin, end, False)

    def place(self, value: float) -> float:
        if self.log:
            share = (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.begin + share * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """Round values in range, three to seven of them."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            candidates = [mantissa * 10.0**decade for decade in decades for mantissa in (1, 2, 5)]
            inside = [value for value in candidates if self.low <= value <= self.high]
            if len(inside) >= 3:
                return inside if len(inside) <= 7 else [value for value in inside if math.log10(value) % 1 < 1e-9]
        rough = (self.high - self.low) / 4
        magnitude = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * magnitude for factor in _TICK_STEPS if factor * magnitude >= rough)
        first = math.ceil(self.low / step - 1e-9)
        return [float(f"{number * step:.12g}") for number in range(first, math.floor(self.high / step + 1e-9) + 1)]
