"""The history of a run: evaluations of its other checkpoints, and pictures drawn during training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eval.report import CheckpointFigures, DrawnInTraining
from piti import storage
from piti.config import STAGE_LABELS, STAGES
from piti.errors import DataError
from piti.evaluation.evaluation_plan import METRICS_FILE
from piti.evaluation.figures import metric_from_json
from piti.evaluation.leaderboard import finished_reports

_SHOWN_OF_A_RUN = 3
_SAME = ("config_fingerprint", "data_fingerprint", "sampler", "guidance")


def checkpoint_history(reports: str, stored: Mapping[str, Any], own_name: str) -> list[CheckpointFigures]:
    """The reports in a folder on checkpoints of the same run as `stored` (metrics.json), by step, itself included.

    Others count where config, data, sampler, guidance and number of pictures are the same. Of one checkpoint the newest
    counts. Empty for weights of no run.
    """
    origin = stored["provenance"]
    if origin["base"].get("run") is None:
        return []
    found = {int(stored["step"]): (str(stored["evaluated"]), own_name, stored)}
    for name in finished_reports(reports):
        other = _readable(storage.join(reports, name, METRICS_FILE))
        if name == own_name or other is None or not _is_of_the_same_run(other, stored):
            continue
        step, when = int(other["step"]), str(other.get("evaluated", ""))
        if step != stored["step"] and (step not in found or found[step][0] < when):
            found[step] = (when, name, other)
    return [
        CheckpointFigures(
            step,
            None if name == own_name else f"../{name}/report.html",
            {key: metric_from_json(value) for key, value in told["metrics"].items()},
        )
        for step, (_, name, told) in sorted(found.items())
    ]


def drawn_in_training(runs: Mapping[str, Mapping[str, str]]) -> list[DrawnInTraining]:
    """Pictures that training runs (by stage) drew of the same conditions and noise: first, middle and last of each."""
    drawn = []
    for stage in STAGES:
        if stage not in runs:
            continue
        folder = storage.join(runs[stage]["run"], "samples")
        names = [name for name in storage.list_names(folder) if name.startswith("step-") and name.endswith(".png")]
        places = sorted({round(k * (len(names) - 1) / (_SHOWN_OF_A_RUN - 1)) for k in range(_SHOWN_OF_A_RUN)})
        for name in (names[place] for place in places if names):
            step = name.removeprefix("step-").removesuffix(".png").lstrip("0") or "0"
            drawn.append(
                DrawnInTraining(f"{STAGE_LABELS[stage]}, step {step}", storage.read_bytes(storage.join(folder, name)))
            )
    return drawn


def _readable(uri: str) -> dict[str, Any] | None:
    """The leaderboard tells of files that cannot be read."""
    try:
        told = storage.read_json(uri)
    except (DataError, FileNotFoundError):
        return None
    return told if isinstance(told, dict) else None


def _is_of_the_same_run(other: Mapping[str, Any], stored: Mapping[str, Any]) -> bool:
    origin, mine = other.get("provenance", {}), stored["provenance"]
    return (
        origin.get("base", {}).get("run") == mine["base"]["run"]
        and other.get("num_samples") == stored["num_samples"]
        and all(origin.get(name) == mine[name] for name in _SAME)
    )
