"""The leaderboard of everything under a root: <root>/reports/index.html, and leaderboard.md, .tex and .parquet beside it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eval.leaderboard import (
    Column,
    Entry,
    Leaderboard,
    leaderboard_latex,
    leaderboard_markdown,
    leaderboard_rows,
    render_leaderboard,
)
from eval.pictures import Metric
from piti import storage
from piti.config.evaluation import FigureKind
from piti.errors import DataError
from piti.evaluation.figures import FIGURES, metric_from_json

METRICS_FILE = "metrics.json"
PAGE = "index.html"


def rebuild_leaderboard(root: str) -> str:
    """Write the leaderboard anew from every report's metrics.json, each file whole, the page last. Returns the page's URI.

    Reports that appear meanwhile are taken in before it returns, so that of two jobs that end at once the later one
    lists both.
    """
    folder = storage.join(root, "reports")
    listed: list[str] | None = None
    while (finished := finished_reports(folder)) != listed:
        _publish(folder, leaderboard(folder, finished))
        listed = finished
    return storage.join(folder, PAGE)


def leaderboard(folder: str, names: list[str]) -> Leaderboard:
    """The leaderboard of the reports with these names below a folder. A report that cannot be read is mentioned on the
    page."""
    entries: list[Entry] = []
    unreadable: list[str] = []
    columns: dict[str, tuple[FigureKind, Metric]] = {}
    for name in names:
        try:
            stored = storage.read_json(storage.join(folder, name, METRICS_FILE))
            metrics = {kind: metric_from_json(stored["metrics"][own]) for kind, own in stored["kinds"].items()}
            entries.append(Entry(_title(stored), name, _facts(stored), {one.name: one for one in metrics.values()}))
        except (DataError, FileNotFoundError, KeyError, TypeError, ValueError, AttributeError) as error:
            unreadable.append(f"{name}/{METRICS_FILE} ({error})")
            continue
        columns |= {metric.name: (kind, metric) for kind, metric in metrics.items() if kind in FIGURES}
    order = list(FIGURES)
    ordered = sorted(columns.values(), key=lambda found: (order.index(found[0]), found[1].name))
    return Leaderboard("Evaluations", [_column(*found) for found in ordered], entries, unreadable)


def finished_reports(folder: str) -> list[str]:
    """Names of the reports in a folder."""
    return sorted(name for name in storage.list_names(folder) if storage.exists(storage.join(folder, name, METRICS_FILE)))  # fmt: skip


def _column(kind: FigureKind, metric: Metric) -> Column:
    figure = FIGURES[kind]
    return Column(metric.name, figure.label(metric), figure.unit, figure.better, figure.meaning)


def _title(stored: Mapping[str, Any]) -> str:
    origin = stored["provenance"]
    return f"{origin['config']}: {origin['base']['title']}"


def _facts(stored: Mapping[str, Any]) -> dict[str, str]:
    origin = stored["provenance"]
    guidance = origin["guidance"]
    parts = str(stored["checkpoint"]).rstrip("/").split("/")
    return {
        "pictures": str(stored["num_samples"]),
        "base sampler": str(origin["sampler"]["base"]),
        "upsampler sampler": str(origin["sampler"]["upsampler"]),
        "guidance": f"{guidance['scale']:g}, {'normalised' if guidance['normalized'] else 'not normalised'}",
        "checkpoint": "/".join(parts[-2:]),
        "data": str(origin["data_fingerprint"]),
        "evaluated": str(stored.get("evaluated", "–")),
    }


def _publish(folder: str, board: Leaderboard) -> None:
    table = io.BytesIO()
    rows = list(leaderboard_rows(board))
    pq.write_table(pa.Table.from_pylist(rows), table)
    storage.write_bytes(storage.join(folder, "leaderboard.parquet"), table.getvalue())
    for name, text in (
        ("leaderboard.md", leaderboard_markdown(board)), ("leaderboard.tex", leaderboard_latex(board)),
        (PAGE, render_leaderboard(board)),
    ):  # fmt: skip
        storage.write_bytes(storage.join(folder, name), text.encode("utf-8", "backslashreplace"))
