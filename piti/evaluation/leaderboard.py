"""The leaderboard of everything under a root: <root>/reports/index.html, and leaderboard.md, .tex and .parquet beside it."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from piti.evaluation.evaluation_plan import METRICS_FILE
from piti.evaluation.figures import FIGURES, metric_from_json

STUDY_FILE = "study.json"
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
    found: list[dict[FigureKind, Metric]] = []
    unreadable: list[str] = []
    for name in names:
        try:
            stored = storage.read_json(storage.join(folder, name, METRICS_FILE))
            known = {kind: own for kind, own in stored["kinds"].items() if kind in FIGURES}  # a newer version has more
            metrics = {kind: metric_from_json(stored["metrics"][own]) for kind, own in known.items()}
            facts = _facts(stored)
            entries.append(Entry(_title(stored), name, facts, {}, f"{facts['data']}, {facts['pictures']} pictures"))
            found.append(metrics)
        except (DataError, FileNotFoundError, KeyError, TypeError, ValueError, AttributeError) as error:
            unreadable.append(f"{name}/{METRICS_FILE} ({error})")
    names_of = _column_names([metric for metrics in found for metric in metrics.values()])
    measured = [(kind, names_of[_way(metric)], metric) for metrics in found for kind, metric in metrics.items()]
    order = list(FIGURES)
    measured.sort(key=lambda one: (order.index(one[0]), one[1]))
    columns = {name: _column(kind, metric, name) for kind, name, metric in measured}
    entries = [
        replace(entry, metrics={names_of[_way(metric)]: metric for metric in metrics.values()})
        for entry, metrics in zip(entries, found, strict=True)
    ]
    return Leaderboard("Evaluations", list(columns.values()), entries, unreadable, studies_in(folder))


def studies_in(folder: str) -> list[tuple[str, str]]:
    """(name, folder) of each study's page among the reports; one that cannot be read has its folder's name."""
    found = []
    for name in storage.list_names(folder):
        try:
            if (told := storage.read_json_if_there(storage.join(folder, name, STUDY_FILE))) is not None:
                found.append((str(told["name"]), name))
        except (DataError, KeyError, TypeError):
            found.append((name, name))
    return found


def finished_reports(folder: str) -> list[str]:
    """Names of the reports in a folder."""
    return sorted(name for name in storage.list_names(folder) if storage.exists(storage.join(folder, name, METRICS_FILE)))  # fmt: skip


def _way(metric: Metric) -> tuple[str, str, str]:
    """Figures that were measured in the same way: name, weights and resizing."""
    network = metric.network
    return (metric.name, "", "") if network is None else (metric.name, network.weights_sha256, network.resize)


def _column_names(metrics: Sequence[Metric]) -> dict[tuple[str, str, str], str]:
    """A name for each way: the figure's own, with resizing and weights where that name stands for several ways."""
    ways = sorted({_way(metric) for metric in metrics})
    own = Counter(name for name, _, _ in ways)
    return {way: way[0] if own[way[0]] == 1 else f"{way[0]} (resize {way[2]}, weights {way[1][:8]})" for way in ways}


def _column(kind: FigureKind, metric: Metric, name: str) -> Column:
    figure = FIGURES[kind]
    return Column(name, figure.label(metric), figure.unit, figure.better, figure.meaning)


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
    rows = [{name: _clean(value) for name, value in row.items()} for row in leaderboard_rows(board)]
    pq.write_table(pa.Table.from_pylist(rows), table)
    storage.write_bytes(storage.join(folder, "leaderboard.parquet"), table.getvalue())
    for name, text in (
        ("leaderboard.md", leaderboard_markdown(board)), ("leaderboard.tex", leaderboard_latex(board)),
        (PAGE, render_leaderboard(board)),
    ):  # fmt: skip
        storage.write_bytes(storage.join(folder, name), text.encode("utf-8", "backslashreplace"))


def _clean(value: Any) -> Any:
    """A text that UTF-8 can hold, whatever a file was named."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
