"""What a run has to say in numbers: JSON lines for programs, TensorBoard event files for people.

A record is {"step", "time", "split": "train" | "validation", name: value, ...}; values are finite floats or null. The
lines lie in `metrics.jsonl`, then `metrics-000001.jsonl` and so on, of which only the last is still written to. A
record of split "resumed" says that records of later steps before it do not count: those steps were done again.
Only the first worker keeps a log.
"""

from __future__ import annotations

import io
import json
import math
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from piti import storage
from piti.training.publisher import Publisher

Split = Literal["train", "validation"]
_Event = tuple[str, float | bytes, int]  # name, number or PNG, step
PUBLISH_INTERVAL_SECONDS = 5.0
RECORDS_PER_PART = 1000
_PART = re.compile(r"metrics(?:-(\d{6}))?\.jsonl")


def read_metrics(run: str) -> list[dict[str, Any]]:
    """All records of the run at URI `run` that count, oldest first; empty if it has none yet."""
    records: list[dict[str, Any]] = []
    for name in _parts(run):
        for line in storage.read_text(storage.join(run, name)).splitlines():
            record = json.loads(line)
            if record["split"] == "resumed":
                records = [earlier for earlier in records if record["step"] and earlier["step"] <= record["step"]]
            else:
                records.append(record)
    return records


class MetricsLog:
    """Appends to the run's metrics and to `<run>/tensorboard/`, through a publisher.

    `first_step` is the step that the run begins or resumes at.
    """

    def __init__(self, run: str, first_step: int, publisher: Publisher) -> None:
        self._run = run
        self._publisher = publisher
        self._events = _Events(storage.join(run, "tensorboard"), first_step)
        self._lock = threading.Lock()
        self._part = len(_parts(run))
        self._lines: dict[int, list[str]] = {}  # of parts that storage may not hold whole
        self._published_seconds = time.monotonic()
        if self._part:
            self._append({"step": first_step, "time": round(time.time(), 3), "split": "resumed"})

    def add(self, step: int, split: Split, values: Mapping[str, float]) -> None:
        """One record. It reaches storage within seconds."""
        finite = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
        self._append({"step": step, "time": round(time.time(), 3), "split": split, **finite})
        self._events.add([(f"{split}/{name}", value, step) for name, value in values.items()])
        if time.monotonic() - self._published_seconds >= PUBLISH_INTERVAL_SECONDS:
            self.publish()

    def add_picture(self, step: int, name: str, png: bytes) -> None:
        """A picture for TensorBoard."""
        self._events.add([(name, png, step)])

    def publish(self) -> None:
        """Hand every record so far to the publisher."""
        self._published_seconds = time.monotonic()
        for part in list(self._lines):
            self._publisher.put(_part_name(part), partial(self._write_part, part))
        self._publisher.put("TensorBoard events", self._events.write)

    def close(self) -> None:
        """Hand over what is left."""
        self.publish()
        self._publisher.put("TensorBoard events", self._events.close)

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


class _Events:
    """TensorBoard's event files, written by the publisher's thread; a new file every so many records."""

    def __init__(self, folder: str, first_step: int) -> None:
        self._remote_folder = None if storage.is_local(folder) else folder
        self._folder = None if self._remote_folder else storage.local_path(folder)
        self._purge_step = first_step + 1 if first_step else None
        self._waiting: list[_Event] = []
        self._writer: SummaryWriter | None = None
        self._num_files = self._num_scalars = 0
        self._uploaded: dict[str, int] = {}

    def add(self, events: Sequence[_Event]) -> None:
        self._waiting.extend(events)

    def write(self) -> None:
        """Write what waits. After an error, what waited then is written again, into a new file."""
        events = list(self._waiting)
        try:
            self._write(events)
        except Exception:
            self._writer = None
            raise
        del self._waiting[: len(events)]

    def close(self) -> None:
        """Write what waits and release what is open."""
        self.write()
        if self._writer is not None:
            self._writer.close()
        if self._remote_folder is not None and self._folder is not None:
            shutil.rmtree(self._folder)

    def _write(self, events: Sequence[_Event]) -> None:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp())
        if self._writer is not None and self._num_scalars >= 10 * RECORDS_PER_PART:
            self._writer.close()
            self._writer = None
        if self._writer is None:
            self._num_files += 1
            self._writer = SummaryWriter(
                str(self._folder), purge_step=self._purge_step, filename_suffix=f".{self._num_files}"
            )
            self._purge_step, self._num_scalars = None, 0
        for name, value, step in events:
            if isinstance(value, bytes):
                picture = np.asarray(Image.open(io.BytesIO(value)))
                self._writer.add_image(name, picture, step, dataformats="HWC")
            else:
                self._writer.add_scalar(name, value, step)
        self._num_scalars += len(events)
        self._writer.flush()
        if self._remote_folder is not None:
            self._upload(self._folder, self._remote_folder)

    def _upload(self, folder: Path, remote: str) -> None:
        """Copy the files that have grown."""
        for path in folder.iterdir():
            data = path.read_bytes()
            if self._uploaded.get(path.name) != len(data):
                storage.write_bytes(storage.join(remote, path.name), data)
                self._uploaded[path.name] = len(data)


def _parts(run: str) -> list[str]:
    return sorted((name for name in storage.list_names(run) if _PART.fullmatch(name)), key=_part_number)


def _part_number(name: str) -> int:
    match = _PART.fullmatch(name)
    return int(match[1]) if match and match[1] else 0


def _part_name(part: int) -> str:
    return f"metrics-{part:06d}.jsonl" if part else "metrics.jsonl"
