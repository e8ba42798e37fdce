"""What a run has to say in numbers: `metrics.jsonl` for programs, TensorBoard event files for people.

A record is {"step", "time", "split": "train" | "validation", name: value, ...}; values are finite floats or null.
Only the first worker keeps a log.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch.utils.tensorboard import SummaryWriter

from piti import storage

Split = Literal["train", "validation"]
PUBLISH_INTERVAL_SECONDS = 5.0


def read_metrics(run: str) -> list[dict[str, Any]]:
    """All records of the run at URI `run`, oldest first; empty if it has none yet."""
    try:
        text = storage.read_text(storage.join(run, "metrics.jsonl"))
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines()]


class MetricsLog:
    """Appends to `<run>/metrics.jsonl`, which is replaced whole, and to `<run>/tensorboard/`.

    `first_step` is the step that the run begins or resumes at: older records of later steps are dropped, because
    those steps are about to be done again.
    """

    def __init__(self, run: str, first_step: int) -> None:
        self._run = run
        self._records = [record for record in read_metrics(run) if record["step"] <= first_step] if first_step else []
        self._published_seconds = time.monotonic()
        folder = storage.join(run, "tensorboard")
        self._remote_folder = None if storage.is_local(folder) else folder
        self._local_folder = Path(tempfile.mkdtemp()) if self._remote_folder else storage.local_path(folder)
        self._writer = SummaryWriter(str(self._local_folder), purge_step=first_step + 1 if first_step else None)

    def add(self, step: int, split: Split, values: Mapping[str, float]) -> None:
        """One record. It reaches storage with the next publication, within seconds."""
        finite = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
        self._records.append({"step": step, "time": round(time.time(), 3), "split": split, **finite})
        for name, value in values.items():
            self._writer.add_scalar(f"{split}/{name}", value, step)
        if time.monotonic() - self._published_seconds >= PUBLISH_INTERVAL_SECONDS:
            self.publish()

    def publish(self) -> None:
        """Make storage hold every record so far."""
        self._published_seconds = time.monotonic()
        lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in self._records)
        storage.write_bytes(storage.join(self._run, "metrics.jsonl"), lines.encode("utf-8"))
        self._writer.flush()
        if self._remote_folder is not None:
            for path in self._local_folder.iterdir():
                storage.write_bytes(storage.join(self._remote_folder, path.name), path.read_bytes())

    def close(self) -> None:
        """Publish and release what is open."""
        self.publish()
        self._writer.close()
        if self._remote_folder is not None:
            shutil.rmtree(self._local_folder)
