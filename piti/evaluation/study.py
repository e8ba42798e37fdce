"""What a study's page shows, from the figures and pictures of its variants' reports."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eval.grid import PictureGrid
from eval.pictures import Metric, mean_metric
from eval.study import StudyColumn, StudyData, StudyRow
from piti import storage
from piti.config import Config
from piti.config.study import StudiedRun
from piti.evaluation.evaluation_plan import METRICS_FILE
from piti.evaluation.figures import FIGURES, metric_from_json
from piti.evaluation.grids import random_keys
from piti.evaluation.measurement import Evaluation
from piti.evaluation.picture_sets import PictureSet

SECONDS = "seconds a picture (sampling)"
_PICTURES_SHOWN = 6
_MOST_COLUMNS = 12


@dataclass(frozen=True)
class Scored:
    """A run and the metrics.json of its report."""

    run: StudiedRun
    metrics: dict[str, Any]

    @classmethod
    def of(cls, run: StudiedRun) -> Scored:
        return cls(run, storage.read_json(storage.join(run["report"], METRICS_FILE)))

    def figure(self, kind: str) -> Metric | None:
        """A figure by its kind (`FIGURES`); None where it was not measured."""
        name = self.metrics["kinds"].get(kind)
        return None if name is None else metric_from_json(self.metrics["metrics"][name])

    def seconds_per_picture(self) -> float | None:
        """As its own sampling job took, over all picture sets; None where it found pictures that were there already."""
        marker = storage.join(self.run["sample"], storage.MARKER)
        result = storage.read_json(marker) if storage.exists(marker) else {}
        drawn, wanted = result.get("pictures_drawn", 0), result.get("pictures_wanted", -1)
        return result["seconds"] / drawn if drawn and drawn == wanted else None


def study_data(
    about: Mapping[str, Any], scored: Sequence[Scored], config: Config, inputs: Mapping[str, str]
) -> StudyData:
    """The page's content. `about`: the flow's study.json; `config` and `inputs` are those of the baseline's report."""
    by_variant: dict[str, list[Scored]] = {}
    for one in scored:
        by_variant.setdefault(one.run["variant"], []).append(one)
    baseline = by_variant[about["baseline"]]
    kinds = [kind for kind in FIGURES if any(kind in one.metrics["kinds"] for one in scored)]
    columns = []
    for kind in kinds:
        metric = next(found for one in scored if (found := one.figure(kind)) is not None)
        columns.append(StudyColumn(kind, FIGURES[kind].label(metric), FIGURES[kind].better))
    rows = [_row(name, runs, baseline, kinds, about) for name, runs in by_variant.items()]
    axes = [axis for axis in (about["axis"], SECONDS) if axis and sum(axis in row.positions for row in rows) > 1]
    origin = baseline[0].metrics["provenance"]
    return StudyData(
        title=f"Study {about['name']}: {config.name}",
        question=about["question"],
        baseline=about["baseline"],
        columns=columns,
        rows=rows,
        axes=axes,
        grid=_grid(by_variant, config, inputs),
        warnings=_warnings(scored),
        facts=[
            ("pictures", ", ".join(f"{name}: {runs[0].metrics['num_samples']}" for name, runs in by_variant.items())),
            ("base checkpoint of the baseline", origin["base"]["uri"]),
            ("data fingerprint", origin["data_fingerprint"]),
            ("code commit", origin["code_commit"]),
        ],
        command=about["command"],
    )  # fmt: skip


def _row(
    name: str, runs: Sequence[Scored], baseline: Sequence[Scored], kinds: Sequence[str], about: Mapping[str, Any]
) -> StudyRow:
    figures = {kind: metric for kind in kinds if (metric := _over_seeds(runs, kind)) is not None}
    differences = {
        kind: metric for kind in kinds if runs is not baseline and (metric := _difference(runs, baseline, kind))
    }
    overrides = ", ".join(
        f"{key} = {json.dumps(value)}" for key, value in runs[0].run["overrides"].items() if key != "seed"
    )
    seeds = [one.run["seed"] for one in runs if one.run["seed"] is not None]
    positions = {
        about["axis"]: [one.run["position"] for one in runs],
        SECONDS: [one.seconds_per_picture() for one in runs],
    }
    return StudyRow(
        name=name,
        settings="; ".join(part for part in (overrides, f"seeds {seeds}" if seeds else "") if part) or "as configured",
        figures=figures,
        differences=differences,
        links=[(_link_text(one), f"../{storage.name(one.run['report'])}/report.html") for one in runs],
        positions={
            axis: sum(values) / len(values)
            for axis, found in positions.items()
            if axis and (values := [value for value in found if value is not None]) and len(values) == len(found)
        },
    )


def _link_text(one: Scored) -> str:
    return "report" if one.run["seed"] is None else f"report, seed {one.run['seed']}"


def _over_seeds(runs: Sequence[Scored], kind: str) -> Metric | None:
    """The figure of a single run, or the mean over runs of several seeds with their Student interval."""
    found = [metric for one in runs if (metric := one.figure(kind)) is not None]
    if len(found) < len(runs):
        return None
    if len(found) == 1:
        return found[0]
    values = np.array([metric.value for metric in found])
    return mean_metric(found[0].name, values, found[0].network)


def _difference(runs: Sequence[Scored], baseline: Sequence[Scored], kind: str) -> Metric | None:
    """How much a figure lies above the baseline's; None where the two do not compare.

    Over seeds that both have, the mean of the differences. Of single runs, the mean of the pictures' own differences
    where the figure is a mean over pictures of the same conditions, and else the plain difference, without an interval.
    """
    mine, theirs = runs[0].figure(kind), baseline[0].figure(kind)
    if mine is None or theirs is None or mine.network != theirs.network:
        return None
    name = f"{mine.name}_difference"
    if len(runs) > 1:
        before = {one.run["seed"]: one.figure(kind) for one in baseline}
        pairs = [(one.figure(kind), before.get(one.run["seed"])) for one in runs]
        values = [now.value - then.value for now, then in pairs if now is not None and then is not None]
        return mean_metric(name, np.array(values), mine.network) if len(values) == len(runs) else None
    now, then = (one.metrics["per_picture"].get(kind) for one in (runs[0], baseline[0]))
    if now is not None and then is not None and now.keys() == then.keys():
        return mean_metric(name, np.array([now[key] - then[key] for key in now]), mine.network)
    return Metric(name, mine.value - theirs.value, note="of sets, not of pictures: no interval", network=mine.network)


def _warnings(scored: Sequence[Scored]) -> list[str]:
    warnings = []
    if not all(one.metrics["provenance"]["comparable"] for one in scored):
        warnings.append(
            "Not all figures compare with published ones: see each report. Here they compare with each other."
        )
    if len({one.metrics["num_samples"] for one in scored}) > 1:
        warnings.append("Variants have different numbers of pictures: the fewer, the higher a Fréchet distance.")
    if len({one.metrics["provenance"]["data_fingerprint"] for one in scored}) > 1:
        warnings.append(
            "Variants were evaluated on different shards: differences are of pictures only where keys agree."
        )
    return warnings


def _grid(by_variant: Mapping[str, Sequence[Scored]], config: Config, inputs: Mapping[str, str]) -> PictureGrid | None:
    """Random conditions that all variants drew: from the same condition and noise, each variant's picture."""
    shown = list(by_variant.items())[:_MOST_COLUMNS]
    evaluation = Evaluation(config, inputs)
    sets = {name: PictureSet(runs[0].run["pictures"]) for name, runs in shown}
    keys = random_keys(
        [key for key in evaluation.keys if all(key in found for found in sets.values())], _PICTURES_SHOWN
    )
    if not keys:
        return None
    rows = []
    for key in keys:
        truth = evaluation.truth(key)
        rows.append([truth.condition, *(found.picture(key) for found in sets.values()), truth.picture])
    caption = "Conditions drawn at random by a hash of their keys; every variant begins from the same noise."
    return PictureGrid(["condition", *sets, "ground truth"], rows, keys, caption, "The same conditions and noise")


def study_table(study: StudyData) -> list[dict[str, Any]]:
    """A record for each variant and figure, JSON-able."""
    records = []
    for row in study.rows:
        for column in study.columns:
            metric, difference = row.figures.get(column.key), row.differences.get(column.key)
            if metric is None:
                continue
            network = metric.network
            records.append(
                {
                    "variant": row.name, "settings": row.settings, "kind": column.key, "figure": metric.name,
                    "better": column.better, "value": metric.value, "low": metric.low, "high": metric.high,
                    "network": None if network is None else network.name,
                    "weights_sha256": None if network is None else network.weights_sha256,
                    "comparable": network is None or network.comparable,
                    "resize": None if network is None else network.resize,
                    "difference": None if difference is None else difference.value,
                    "difference_low": None if difference is None else difference.low,
                    "difference_high": None if difference is None else difference.high,
                    "position": row.positions.get(study.axes[0]) if study.axes else None,
                    "seconds_per_picture": row.positions.get(SECONDS),
                    "note": metric.note,
                }
            )  # fmt: skip
    return records


def parquet_bytes(records: Sequence[Mapping[str, Any]]) -> bytes:
    """Records as a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([dict(record) for record in records], schema=_SCHEMA), buffer)
    return buffer.getvalue()


_TEXTS = ("variant", "settings", "kind", "figure", "better", "network", "weights_sha256", "resize", "note")
_NUMBERS = (
    "value", "low", "high", "difference", "difference_low", "difference_high", "position", "seconds_per_picture",
)  # fmt: skip
_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in _TEXTS),
        *((name, pa.float64()) for name in _NUMBERS),
        ("comparable", pa.bool_()),
    ]
)
