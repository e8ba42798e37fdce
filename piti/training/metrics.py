"""A run's metrics: JSON lines for programs, trackers for people.

A record is {"step", "time", "split": "train" | "validation", name: value, ...}; values are finite floats or null. The
lines lie in `metrics.jsonl`, then `metrics-000001.jsonl` and so on, of which only the last is still written to. A
record of split "resumed" says that records of later steps before it do not count: those steps were done again.
Only the first worker keeps a log.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from piti import storage
from piti.errors import DataError
from piti.training.publisher import Publisher
from piti.training.trackers import Tracker

Split = Literal["train", "validation"]
PUBLISH_INTERVAL_SECONDS = 5.0
RECORDS_PER_PART = 1000
_PART = re.compile(r"metrics(?:-(\d{6}))?\.jsonl")


def read_metrics(run: str) -> list[dict[str, Any]]:
    """All records of the run at URI `run` that count, oldest first; empty if it has none yet.

    A part is written whole, so a killed run leaves no cut line. Raises DataError for a part that came damaged.
    """
    records: list[dict[str, Any]] = []
    for name in _parts(run):
        for record in _records_of(storage.join(run, name)):
            if record["split"] == "resumed":
                records = [earlier for earlier in records if record["step"] and earlier["step"] <= record["step"]]
            else:
                records.append(record)
    return records


class MetricsLog:
    """Appends to the run's metrics through a publisher, and tells `trackers`.

    `first_step` is the step that the run begins or resumes at.
    """

    def __init__(self, run: str, first_step: int, publisher: Publisher, trackers: Sequence[Tracker] = ()) -> None:
        self._run = run
        self._publisher = publisher
        self._trackers = trackers
        self._lock = threading.Lock()
        stored = _parts(run)  # a part that storage did not take may be missing among them
        self._part = _part_number(stored[-1]) + 1 if stored else 0
        self._lines: dict[int, list[str]] = {}  # of parts that storage may not hold whole
        self._published_seconds = time.monotonic()
        if self._part:
            self._append({"step": first_step, "time": round(time.time(), 3), "split": "resumed"})

    def add(self, step: int, split: Split, values: Mapping[str, float]) -> None:
        """Add a record, which reaches storage within seconds."""
        finite = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
        self._append({"step": step, "time": round(time.time(), 3), "split": split, **finite})
        for tracker in self._trackers:
            tracker.add([(f"{split}/{name}", value, step) for name, value in values.items()])
        if time.monotonic() - self._published_seconds >= PUBLISH_INTERVAL_SECONDS:
            self.publish()

    def add_picture(self, step: int, name: str, png: bytes) -> None:
        """Add a picture for the trackers."""
        for tracker in self._trackers:
            tracker.add([(name, png, step)])

    def publish(self) -> None:
        """Start writing every record so far."""
        self._published_seconds = time.monotonic()
        for part in list(self._lines):
            self._publisher.put(_part_name(part), partial(self._write_part, part))
        for tracker in self._trackers:
            tracker.publish()

    def _append(self, record: Mapping[str, Any]) -> None:
        with self._lock:
            lines = self._lines.setdefault(self._part, [])
            lines.append(json.dumps(record, allow_nan=False) + "\n")
            is_full = len(lines) >= RECORDS_PER_PART
        if is_full:
            self.publish()
            self._part += 1

    def _write_part(self, part: int) -> None:
        with self._lock:
            lines = list(self._lines.get(part, ()))
        storage.write_bytes(storage.join(self._run, _part_name(part)), "".join(lines).encode("utf-8"))
        with self._lock:
            if part < self._part:
                self._lines.pop(part, None)


def _records_of(uri: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(storage.read_bytes(uri).splitlines(), start=1):
        try:
            record = json.loads(line)
        except ValueError:  # no JSON, or no text
            record = None
        if not (isinstance(record, dict) and isinstance(record.get("step"), int) and "split" in record):
            raise DataError(
                f"line {number} of {uri} is no record of a training run",
                "delete that line or the file: only the loss curve needs it",
            )
        yield record


def _parts(run: str) -> list[str]:
    return sorted((name for name in storage.list_names(run) if _PART.fullmatch(name)), key=_part_number)


def _part_number(name: str) -> int:
    match = _PART.fullmatch(name)
    return int(match[1]) if match and match[1] else 0


def _part_name(part: int) -> str:
    return f"metrics-{part:06d}.jsonl" if part else "metrics.jsonl"
