"""What all pages have in common: templates that escape everything, and how numbers are written."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import jinja2

from eval.pictures import Metric

_MISSING = "–"


def environment() -> jinja2.Environment:
    """Of the templates beside this file, with filters for numbers. Everything is escaped, a missing value is an error."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "number": format_number, "percent": format_percent, "duration": format_duration, "interval": format_interval,
    }  # fmt: skip
    return made


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


def measured_with(metrics: Iterable[Metric]) -> str:
    """Networks, resizing, comparability, hashes and notes of figures of one kind, in words; each said once."""
    networks: dict[str, None] = {}
    notes: dict[str, None] = {}
    for metric in metrics:
        network = metric.network
        if network is None:
            networks["needs no network"] = None
        else:
            compares = "comparable with published figures" if network.comparable else "compares only with itself"
            words = f"{network.name}, resize {network.resize}, {compares}, weights {network.weights_sha256}"
            networks[words] = None
        if metric.note:
            notes[metric.note] = None
    return "; ".join([*networks, *notes])


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
