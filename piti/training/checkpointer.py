"""Checkpoints beside the loop: the loop waits for a snapshot in memory, a thread writes it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from piti import storage
from piti.checkpoints import aside_folder, prune_checkpoints
from piti.errors import DataError, first_line
from piti.job import Followers, JobContext
from piti.provenance import code_versions
from piti.training.publisher import Publisher
from piti.training.state import Snapshot, TrainingState
from piti.training.status import Status

ATTEMPTS = 3  # at a last checkpoint, where storage is there
PATIENCE_SECONDS = 600.0  # where it is away or hangs
SLOWEST_BYTES_PER_SECOND = 2e6  # of storage that is there: a checkpoint gets that much more time
TELL_SECONDS = 5.0  # between signs of life while waiting
_SPARE_SHARE = 1.05  # what is free must exceed a checkpoint's size by


class Checkpointer:
    """Writes a run's checkpoints, one after the other, and deletes old ones. For the first worker only.

    While a checkpoint is written, the newest other one waits, and every one of a phase's end. A failed write is
    repeated until a newer checkpoint is due, that of a phase's end until it succeeds; training goes on meanwhile.
    """

    def __init__(self, context: JobContext, state: TrainingState, status: Status) -> None:
        self._context = context
        self._state = state
        self._status = status
        self._publisher = Publisher()
        self._num_bytes = 0  # of the newest checkpoint
        self._is_away = False  # the last write failed because storage does not answer, which may pass

    def save(self, snapshot: Snapshot) -> None:
        """Start writing a snapshot of the present state."""
        state, progress, settings = self._state, self._state.progress, self._state.stage.settings
        spec, self._num_bytes = self._context.spec, snapshot.num_bytes
        about: dict[str, Any] = {
            "stage": state.stage.name, "step": progress.step, "run": spec.output, "fingerprint": spec.fingerprint,
            "samples": progress.step * settings.batch_size, "seed": self._context.config.seed,
            "validation": progress.last_validation, "validation_step": progress.last_validation_step,
            "origin": state.origin, "code": code_versions(),
        }  # fmt: skip
        self._status.publish()
        ends_phase_before_last = progress.step in settings.phase_ends[:-1]
        name = f"the checkpoint of step {progress.step}" if ends_phase_before_last else "a checkpoint"
        self._publisher.put(name, partial(self._attempt, snapshot, about))

    def wait(self, tell: Callable[[], None], deadline: float | None = None) -> Exception | None:
        """Wait until all checkpoints are written: for several attempts, or until `deadline` of time.monotonic() where
        storage is away. `tell()` is called every few seconds.

        `deadline` None: in PATIENCE_SECONDS, and more by a checkpoint's size. Returns the last attempt's error, or a
        TimeoutError; None: they are written.
        """
        failed_before, began_seconds = self._publisher.num_failed, time.monotonic()
        if deadline is None:
            deadline = began_seconds + PATIENCE_SECONDS + self._num_bytes / SLOWEST_BYTES_PER_SECOND
        while not self._publisher.flush(min(TELL_SECONDS, max(0.0, deadline - time.monotonic()))):
            tell()
            num_failed = self._publisher.num_failed - failed_before
            error = self._publisher.last_error if num_failed else None
            if time.monotonic() >= deadline:
                return error or TimeoutError(
                    f"a checkpoint of {self._context.spec.output} was not written in {deadline - began_seconds:.0f} s"
                )
            if error is not None and num_failed >= ATTEMPTS and not self._is_away:
                return error
        return None

    def close(self, deadline: float) -> None:
        """Finish the current write if storage accepts it until `deadline` of time.monotonic()."""
        self._publisher.close(deadline)

    def num_failed(self) -> int:
        """How many attempts at writing failed."""
        return self._publisher.num_failed

    def _attempt(self, snapshot: Snapshot, about: dict[str, Any]) -> None:
        """Write; after an error, look here why, for storage may hang at that, too."""
        try:
            self._write(snapshot, about)
        except Exception as error:
            self._is_away = True
            with storage.tolerated("cannot read whether this job's folder is there"):
                self._is_away = storage.is_client_error(error) or Followers(self._context.spec.folder).are_away()
            raise

    def _write(self, snapshot: Snapshot, about: dict[str, Any]) -> None:
        run, began_seconds = self._context.spec.output, time.monotonic()
        needed = _SPARE_SHARE * snapshot.num_bytes
        place = str(aside_folder(run))
        if (free := storage.free_bytes(place)) is not None and free < needed:
            self._prune()  # keep_checkpoints may be lower now than in the run's last attempt
            free = storage.free_bytes(place)
        if free is not None and free < needed:
            remedy = "lower keep_checkpoints" if storage.is_local(run) else "set TMPDIR to a larger disk"
            raise DataError(
                f"{place} has {free / 1e9:.2f} GB free, a checkpoint needs {snapshot.num_bytes / 1e9:.2f} GB",
                f"free some space there, or {remedy}",
            )
        self._status.flush()  # the metrics before a checkpoint should be stored first
        uri = self._state.save(snapshot, run, about)
        self._prune()
        seconds = time.monotonic() - began_seconds
        self._context.info(f"{self._state.stage.name}: wrote {uri} in {seconds:.1f} s, beside the training")

    def _prune(self) -> None:
        """Delete old checkpoints, never the newest finished one. What fails is logged: the next write tries again."""
        run, settings = self._context.spec.output, self._state.stage.settings
        try:
            prune_checkpoints(run, settings.keep_checkpoints, settings.phase_ends, settings.keep_every_steps)
        except Exception as error:  # noqa: BLE001 - whatever storage and its clients raise
            self._context.info(f"could not delete old checkpoints, the next write tries again: {first_line(error)}")
