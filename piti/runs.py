"""Facts about stored training runs: progress, workers, config, code, and the differences between two runs.

Reads only what lies below a root: `runs/<fingerprint>/` (checkpoints, metrics, workers.json, DONE.json), and in
`jobs/<id>/` the config that each attempt was given.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, cast

from piti import storage
from piti.checkpoints import Checkpoint, checkpoints_of
from piti.config import STAGES
from piti.errors import CheckpointError, DataError
from piti.job import ERROR_FILE, PROGRESS_FILE, SPEC_FILE

logger = logging.getLogger("piti")

WORKERS_FILE = "workers.json"
_SILENT_SECONDS = 60.0  # a job without progress for so long does not run

Flat = dict[str, Any]


@dataclass(frozen=True)
class Attempt:
    """One job of a run: its `spec`, and its last `progress` and `error`."""

    folder: str
    spec: dict[str, Any]
    progress: dict[str, Any] | None
    error: dict[str, Any] | None

    @property
    def time(self) -> float:
        """Time of its last progress, in seconds since the epoch; 0: none."""
        return float((self.progress or {}).get("time", 0.0))


@dataclass(frozen=True)
class Run:
    """A training run. `result`: of a finished run; `workers`: of the newest start."""

    uri: str
    result: dict[str, Any] | None
    attempts: list[Attempt] = field(default_factory=list)
    workers: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    checkpoints: list[str] = field(default_factory=list)
    checkpoint: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        """The whole config of the newest attempt; empty where no attempt is stored."""
        return cast(dict[str, Any], self.attempts[-1].spec["config"]) if self.attempts else {}

    @property
    def state(self) -> str:
        """finished, running, failed or stopped, the latter with their reasons where the job wrote one."""
        if self.result is not None:
            return "finished"
        newest = self.attempts[-1] if self.attempts else None
        if newest is not None and newest.error is not None:
            return f"{'stopped' if newest.error.get('stopped') else 'failed'}: {newest.error['reason']}"
        if newest is not None and time.time() - newest.time < _SILENT_SECONDS:
            return f"running: {(newest.progress or {}).get('message', '')}".rstrip(": ")
        return "stopped"

    def summary(self) -> dict[str, Any]:
        """JSON-able facts about the run, by name. Unknown facts are missing."""
        stage = self._told("name") or self.checkpoint.get("stage")
        settings = (self.config.get("training") or {}).get(stage) or {}
        total = sum(phase["steps"] for phase in settings.get("phases", ()))
        result = self.result or {}
        last = {split: self._last(split) for split in ("train", "validation")}
        facts = {
            "run": storage.name(self.uri), "stage": stage, "config": self.config.get("name"), "state": self.state,
            "step": result.get("steps", max(last["train"].get("step", 0), self.checkpoint.get("step", 0))),
            "total_steps": total or None, "losses": {split: _numbers(record) for split, record in last.items() if record},
            "seconds": result.get("wall_seconds"), "pictures_per_second": last["train"].get("pictures_per_second"),
            "began": self.workers.get("began"), "workers": self.workers.get("workers"), "seed": self.config.get("seed"),
            "code": result.get("code") or self.checkpoint.get("code"), "inputs": self._told("inputs"),
            "origin": result.get("origin") or self.checkpoint.get("origin"), "uri": self.uri,
            "fingerprint": self._told("fingerprint"), "checkpoints": [storage.name(uri) for uri in self.checkpoints],
            "attempts": [storage.name(attempt.folder) for attempt in self.attempts],
        }  # fmt: skip
        return {name: value for name, value in facts.items() if value not in (None, {}, [])}

    def _told(self, name: str) -> Any:
        return (self.result or {}).get(name) or (self.attempts[-1].spec.get(name) if self.attempts else None)

    def _last(self, split: str) -> dict[str, Any]:
        return next((record for record in reversed(self.metrics) if record.get("split") == split), {})


def runs_below(root: str) -> list[Run]:
    """Every training run below a root, in the order of their newest attempts; those without one first. Runs and attempts
    whose files are damaged are left out, and the log says which.
    """
    folder = storage.join(root, "runs")
    attempts = _attempts(root)
    found = []
    for name in storage.list_names(folder):
        with _left_out_if_damaged():
            found.append(_run(storage.join(folder, name), attempts))
    return sorted(found, key=lambda run: run.attempts[-1].time if run.attempts else 0.0)


def run_at(uri: str) -> Run:
    """The run in a folder `<root>/runs/<fingerprint>`. Raises DataError if there is none, or if its files are damaged."""
    uri = uri.rstrip("/")
    if not storage.list_names(uri):
        raise DataError(f"there is no training run at {uri}", "`piti runs ls ROOT` lists those below a root")
    return _run(uri, _attempts(uri.rsplit("/", 2)[0]))


def differences(one: Run, other: Run) -> dict[str, tuple[Any, Any]]:
    """Differences by dotted name, as pairs of values; None where a side has none. Config keys first, then code, data,
    seeds and initial weights.
    """
    left, right = (_comparable(run) for run in (one, other))
    names = [*left, *(name for name in right if name not in left)]
    return {name: (left.get(name), right.get(name)) for name in names if left.get(name) != right.get(name)}


def _comparable(run: Run) -> Flat:
    facts = run.summary()
    parts = {"config": run.config, **{name: facts.get(name, {}) for name in ("code", "inputs", "origin")}}
    flat: Flat = {"stage": facts.get("stage")}
    for part, values in parts.items():
        flat |= {f"{part}.{name}": value for name, value in _flattened(values)}
    return flat


def _flattened(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value):
            value = {str(number): entry for number, entry in enumerate(value)}
        if isinstance(value, Mapping) and value:
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _numbers(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in ("split", "time")}


def _run(uri: str, attempts: list[Attempt]) -> Run:
    from piti.training.metrics import read_metrics

    checkpoints = checkpoints_of(uri)
    checkpoint: dict[str, Any] = {}
    if checkpoints:
        with suppress(CheckpointError):  # a damaged file; the run's other facts are still shown
            checkpoint = Checkpoint.at(checkpoints[-1]).about
    return Run(
        uri,
        storage.read_json_if_there(storage.join(uri, storage.MARKER)),
        [attempt for attempt in attempts if storage.absolute(attempt.spec["output"]) == storage.absolute(uri)],
        storage.read_json_if_there(storage.join(uri, WORKERS_FILE)) or {},
        read_metrics(uri),
        checkpoints,
        checkpoint,
    )


def _attempts(root: str) -> list[Attempt]:
    """The training jobs below a root, oldest first."""
    folder = storage.join(root, "jobs")
    found: list[tuple[int, Attempt]] = []
    for name in storage.list_names(folder):
        if any(name.startswith(f"piti-{stage}-") for stage in STAGES):
            with _left_out_if_damaged():
                attempt = _attempt(storage.join(folder, name))
                if attempt is not None:
                    found.append((_number(name), attempt))
    return [attempt for _, attempt in sorted(found, key=lambda numbered: numbered[0])]


def _attempt(place: str) -> Attempt | None:
    """The job that `place` is the folder of; None where it has no specification yet. Raises DataError."""
    files = (SPEC_FILE, PROGRESS_FILE, ERROR_FILE)
    spec, progress, error = (storage.read_json_if_there(storage.join(place, file)) for file in files)
    if spec is None:
        return None
    is_one = isinstance(spec.get("output"), str) and isinstance(spec.get("config"), dict)
    if not is_one or (error is not None and "reason" not in error):
        raise DataError(f"{place} is no folder of a job of this project", "delete it")
    return Attempt(place, spec, progress, error)


def _number(submission_id: str) -> int:
    number = submission_id.rpartition("-")[2]
    if not (number.isascii() and number.isdecimal()):
        raise DataError(f"{submission_id} in jobs/ is not named like a job, whose number stands last", "delete it")
    return int(number)


@contextmanager
def _left_out_if_damaged() -> Iterator[None]:
    try:
        yield
    except DataError as error:
        logger.warning("left out: %s", error)
