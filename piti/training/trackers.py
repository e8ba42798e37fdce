"""Programs in which people follow a run: TensorBoard, and where configured MLflow and Weights & Biases.

Each has a thread of its own, so that neither the loop nor another tracker waits for one that hangs.
"""

from __future__ import annotations

import io
import shutil
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from piti import storage
from piti.job import JobContext
from piti.training.publisher import Publisher

Event = tuple[str, float | bytes, int]  # name, number or PNG, step
EVENTS_PER_FILE = 10_000  # of TensorBoard's
_METRICS_PER_CALL = 1000  # MLflow takes no more


class Tracker(ABC):
    """A tracker that fails is tried again, with all that waits by then; `num_failed` counts that."""

    name: str

    def __init__(self) -> None:
        self._waiting: list[Event] = []
        self._publisher = Publisher()

    @property
    def num_failed(self) -> int:
        return self._publisher.num_failed

    def add(self, events: Sequence[Event]) -> None:
        """Have it told with the next `publish`."""
        self._waiting.extend(events)

    def publish(self) -> None:
        """Tell it soon what waits. Returns at once."""
        self._publisher.put(self.name, self._tell)

    def end(self) -> None:
        """Tell it soon what waits, for the last time. Returns at once."""
        self._publisher.put(self.name, self._end)

    def close(self, deadline: float | None = None) -> list[str]:
        """Wait for `end`, until `deadline` as `Publisher.close` has it. Its name if something is lost."""
        return self._publisher.close(deadline)

    def _tell(self) -> None:
        events = list(self._waiting)
        self._write(events)
        del self._waiting[: len(events)]

    def _end(self) -> None:
        self._tell()
        self._finish()

    @abstractmethod
    def _write(self, events: Sequence[Event]) -> None:
        """Called by the thread, as `_finish`; may raise anything. After an error the same events come again."""

    @abstractmethod
    def _finish(self) -> None:
        """Release what is open."""


def open_trackers(context: JobContext, first_step: int) -> list[Tracker]:
    """The trackers of a run that begins or resumes at `first_step`. Nothing is opened or reached yet."""
    run, name, tracking = context.spec.output, context.config.name, context.config.tracking
    title = f"{context.spec.name} {storage.name(run)[:8]}"
    trackers: list[Tracker] = [TensorBoard(storage.join(run, "tensorboard"), first_step)]
    if tracking.mlflow is not None:
        trackers.append(MLflow(tracking.mlflow, name, title, run))
    if tracking.wandb is not None:
        trackers.append(WeightsAndBiases(tracking.wandb, name, title, run))
    return trackers


class TensorBoard(Tracker):
    """Event files in a folder, local or remote; a new file every so many events, and after an error."""

    name = "TensorBoard events"

    def __init__(self, folder: str, first_step: int) -> None:
        super().__init__()
        self._remote_folder = None if storage.is_local(folder) else folder
        self._folder = None if self._remote_folder else storage.local_path(folder)
        self._purge_step = first_step + 1 if first_step else None
        self._writer: SummaryWriter | None = None
        self._num_files = self._num_events = 0
        self._uploaded: dict[str, int] = {}

    def _tell(self) -> None:
        super()._tell()
        if self._remote_folder is not None and self._folder is not None:
            self._upload(self._folder, self._remote_folder)  # after an error here only the upload is repeated

    def _write(self, events: Sequence[Event]) -> None:
        if self._writer is not None and self._num_events >= EVENTS_PER_FILE:
            self._close_file()
        writer = self._writer or self._open_file()
        try:
            for name, value, step in events:
                if isinstance(value, bytes):
                    writer.add_image(name, np.asarray(_picture(value)), step, dataformats="HWC")
                else:
                    writer.add_scalar(name, value, step)
            writer.flush()
        except Exception:
            with suppress(Exception):  # the first error counts; the events begin a new file
                self._close_file()
            raise
        self._num_events += len(events)

    def _open_file(self) -> SummaryWriter:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp())
        self._num_files += 1
        suffix = f".{self._num_files}"
        self._writer = SummaryWriter(str(self._folder), purge_step=self._purge_step, filename_suffix=suffix)
        self._purge_step, self._num_events = None, 0
        return self._writer

    def _close_file(self) -> None:
        writer: Any = self._writer
        self._writer = None
        if writer is not None:
            writer.file_writer.close()  # unlike `writer.close()`, it ends the writer's thread where its flush fails

    def _upload(self, folder: Path, remote: str) -> None:
        """Copy the files that have grown."""
        for path in folder.iterdir():
            data = path.read_bytes()
            if self._uploaded.get(path.name) != len(data):
                storage.write_bytes(storage.join(remote, path.name), data)
                self._uploaded[path.name] = len(data)

    def _finish(self) -> None:
        self._close_file()
        if self._remote_folder is not None and self._folder is not None:
            shutil.rmtree(self._folder)


class MLflow(Tracker):
    """A run of an experiment, found again by its tag `piti.run`. Steps that were done again are there twice, alike."""

    name = "MLflow"

    def __init__(self, uri: str, experiment: str, title: str, run: str) -> None:
        super().__init__()
        self._uri, self._experiment, self._title, self._run = uri, experiment, title, run
        self._client: Any = None
        self._id = ""

    def _write(self, events: Sequence[Event]) -> None:
        from mlflow.entities import Metric

        if self._client is None:
            self._open()
        now = int(time.time() * 1000)
        numbers = [Metric(name, value, now, step) for name, value, step in events if not isinstance(value, bytes)]
        for first in range(0, len(numbers), _METRICS_PER_CALL):
            self._client.log_batch(self._id, metrics=numbers[first : first + _METRICS_PER_CALL])
        for name, value, step in events:
            if isinstance(value, bytes):
                self._client.log_image(self._id, _picture(value), key=name, step=step)

    def _open(self) -> None:
        from mlflow import MlflowClient

        client = MlflowClient(self._uri)
        experiment = client.get_experiment_by_name(self._experiment)
        number = client.create_experiment(self._experiment) if experiment is None else experiment.experiment_id
        # MLflow's filters escape no quotes, so only the folder's name, a fingerprint, may stand in one, never the path.
        alike = client.search_runs([number], f"tags.`piti.run` LIKE '%{storage.name(self._run)}'")
        found = [run.info.run_id for run in alike if run.data.tags["piti.run"] == self._run]
        if found:
            self._id = found[0]
            client.update_run(self._id, "RUNNING")
        else:
            self._id = client.create_run(number, tags={"piti.run": self._run}, run_name=self._title).info.run_id
        self._client = client

    def _finish(self) -> None:
        self._client.set_terminated(self._id)


class WeightsAndBiases(Tracker):
    """A run of a project, whose id is the run folder's name, so that a resumed run goes on with it.

    Offline, its files lie in `<run>/wandb/`; below a remote root they are copied there when the run ends.
    """

    name = "Weights & Biases"

    def __init__(self, mode: Literal["offline", "online"], project: str, title: str, run: str) -> None:
        super().__init__()
        self._mode, self._project, self._title, self._run = mode, project, title, run
        self._folder: Path | None = None
        self._wandb_run: Any = None

    def _write(self, events: Sequence[Event]) -> None:
        import wandb

        if self._wandb_run is None:
            self._wandb_run = self._open()
        for step, group in groupby(events, key=lambda event: event[2]):
            seen = {
                name: wandb.Image(_picture(value)) if isinstance(value, bytes) else value for name, value, _ in group
            }
            self._wandb_run.log(seen, step=step)

    def _open(self) -> Any:
        import wandb

        self._folder = storage.local_path(self._run) if storage.is_local(self._run) else Path(tempfile.mkdtemp())
        return wandb.init(
            project=self._project, id=storage.name(self._run), name=self._title, config={"run": self._run},
            mode=self._mode, resume="allow" if self._mode == "online" else None, dir=str(self._folder),
            settings=wandb.Settings(console="off", silent=True),
        )  # fmt: skip

    def _finish(self) -> None:
        self._wandb_run.finish()
        if self._folder is None or storage.is_local(self._run):
            return
        for path in self._folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                uri = storage.join(self._run, path.relative_to(self._folder).as_posix())
                storage.write_bytes(uri, path.read_bytes())
        shutil.rmtree(self._folder)


def _picture(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))
