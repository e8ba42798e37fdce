"""What happens beside the steps of a training run: logging, validation, pictures, checkpoints, stopping."""

from __future__ import annotations

import time
from typing import Any

from piti import storage
from piti.checkpoints import checkpoint_uri
from piti.errors import StoppedError, first_line
from piti.job import JobContext
from piti.training.batches import Batches, degraded_input
from piti.training.checkpointer import Checkpointer
from piti.training.divergence import Divergence
from piti.training.gradients import StepLosses
from piti.training.publisher import CLOSE_SECONDS
from piti.training.samples import Samples
from piti.training.state import TrainingState
from piti.training.status import Status
from piti.training.stopping import StopSign
from piti.training.validation import Validation

STOP_SECONDS = 45.0  # from a stop to the end of the run, however storage is
STOP_CLOSE_SECONDS = 5.0  # of these, for what the run closes; the rest is for the last checkpoint


class Observers:
    """Every worker calls each method after every step; the step's number decides which are due.

    Only the first worker logs and writes.
    """

    def __init__(self, context: JobContext, state: TrainingState, batches: Batches) -> None:
        self._context = context
        self._state = state
        self._batches = batches
        self._settings = state.stage.settings
        self._status = Status(context, state, batches)
        self._divergence = Divergence(context.spec.output, state, self._wait_for_checkpoints)
        self._validation = Validation(
            state.stage, context.spec.inputs["shards"], degraded_input(context), state.workers
        )
        self._samples = Samples(context, state) if state.workers.is_first else None
        self._checkpointer = Checkpointer(context, state, self._status) if state.workers.is_first else None
        self._began_seconds = time.monotonic() - state.progress.seconds
        self._stop_sign = StopSign(context, state.workers, state.progress.step)
        self._stop: StoppedError | None = None  # what the run is about to end with
        self._leave_by: float | None = None  # deadline of time.monotonic() for a run that stops

    def begin(self) -> None:
        """Before the first step of a run: validate the initial weights."""
        if self._state.progress.step == 0:
            self._validate()

    def log(self, losses: StepLosses, learning_rate: float) -> None:
        """Count a step; every `log_every_steps`, log the last ones. Like `validate` and `checkpoint`, it raises the
        errors of Divergence."""
        self._context.alive(self._state.progress.step)
        self._status.step(losses, learning_rate)
        if self._is_due(self._settings.log_every_steps) or self._state.progress.step == self._settings.total_steps:
            self._divergence.check_steps()
        self._stop = self._stop_sign.after(self._state.progress.step)

    def validate(self) -> None:
        """Every `validate_every_steps`, and at the end of a phase: measure the averaged weights' losses."""
        if self._is_due(self._settings.validate_every_steps) or self._ends_phase():
            self._validate()

    def sample(self) -> None:
        """Every `sample_every_steps`: draw pictures of a few validation conditions with the averaged weights."""
        every_steps = self._settings.sample_every_steps
        if every_steps is None or not self._is_due(every_steps):
            return
        began_seconds = time.monotonic()
        averaged = self._state.averaged()
        if self._samples is not None:
            drawn: bytes | None = None
            with storage.tolerated("cannot read validation pictures"):
                drawn = self._samples.draw(averaged)
            self._status.samples(drawn, time.monotonic() - began_seconds)
        self._state.workers.agree(None)  # workers that draw nothing wait here, where it counts as time elsewhere

    def checkpoint(self) -> None:
        """Every `checkpoint_every_steps`, and at the end of a phase: start writing a checkpoint beside the training.

        After the last step, and before a run stops, wait for the checkpoint. After the last step, raise the error of a
        failed write; a run that stops goes on from the checkpoint before.
        """
        is_last = self._state.progress.step == self._settings.total_steps
        ends_run = is_last or self._stop is not None
        is_due = self._is_due(self._settings.checkpoint_every_steps) and not self._divergence.is_doubtful()
        if not (is_due or ends_run or self._ends_phase()):
            return
        if self._stop is not None and not is_last:
            self._leave_by = time.monotonic() + STOP_SECONDS
        self._divergence.check_weights()
        began_seconds = time.monotonic()
        self._state.progress.seconds = began_seconds - self._began_seconds
        snapshot = self._state.snapshot()
        if self._checkpointer is not None:
            self._checkpointer.save(snapshot)
        if ends_run:
            self._finish_checkpoints(is_last)
        self._status.elsewhere(time.monotonic() - began_seconds)

    def stop(self) -> None:
        """Raise StoppedError if the run was asked to end or is abandoned, and has steps left."""
        if self._stop is not None and self._state.progress.step < self._settings.total_steps:
            raise self._stop

    def close(self) -> None:
        """Finish what is being written, and look no more for a stop. Whatever hangs, all of it shares one deadline."""
        self._stop_sign.close()
        deadline = self._leave_by or time.monotonic() + CLOSE_SECONDS
        self._status.close(deadline)
        if self._checkpointer is not None:
            self._checkpointer.close(deadline)

    def result(self) -> dict[str, Any]:
        """The job's result for a finished run."""
        state, progress = self._state, self._state.progress
        return {
            "checkpoint": checkpoint_uri(self._context.spec.output, progress.step),
            "steps": progress.step,
            "samples": progress.step * self._settings.batch_size,
            "initial_validation": progress.initial_validation,
            "final_validation": progress.last_validation,
            "wall_seconds": round(progress.seconds, 3),
            "pictures_per_second": self._status.pictures_per_second(),
            "skipped_steps": int(progress.skipped_steps),
            "left_out_steps": self._batches.left_out_steps,
            "num_parameters": sum(parameter.numel() for parameter in state.model.parameters()),
            "num_learning_parameters": sum(parameter.numel() for parameter in state.parameters()),
            "origin": state.origin,
            "storage": self._storage(),
        }

    def _is_due(self, every_steps: int) -> bool:
        return self._state.progress.step % every_steps == 0

    def _ends_phase(self) -> bool:
        return self._state.progress.step in self._settings.phase_ends

    def _validate(self) -> None:
        progress, began_seconds = self._state.progress, time.monotonic()
        values = self._validation(self._state.averaged())
        if values is not None:
            self._divergence.check_validation(values)
            progress.last_validation, progress.last_validation_step = values, progress.step
            if progress.step == 0:
                progress.initial_validation = values
        self._status.validation(values, time.monotonic() - began_seconds)
        self._context.alive(progress.step)

    def _finish_checkpoints(self, is_last: bool) -> None:
        """Wait for a run's last checkpoint; no worker ends the run before it is there, as far as patience goes."""
        error = self._wait_for_checkpoints()
        if error is None:
            return
        if is_last:
            raise error
        self._context.info(f"{self._state.stage.name}: stops without a last checkpoint: {first_line(error)}")

    def _wait_for_checkpoints(self) -> Exception | None:
        """`Checkpointer.wait`, by all workers. Its error, on the first one.

        The others hear of the first every few seconds, so that neither a watchdog nor NCCL takes them to hang.
        """
        workers, step = self._state.workers, self._state.progress.step
        if self._checkpointer is None:
            while workers.agree(None):
                self._context.alive(step)
            return None

        def tell() -> None:
            workers.agree(True)
            self._context.alive(step)

        deadline = None if self._leave_by is None else self._leave_by - STOP_CLOSE_SECONDS
        error = self._checkpointer.wait(tell, deadline)
        workers.agree(False)
        return error

    def _storage(self) -> dict[str, Any]:
        """How many writes failed, of metrics and of checkpoints, and what was lost in the end."""
        failed = 0 if self._checkpointer is None else self._checkpointer.num_failed()
        return {**self._status.storage(), "failed_checkpoints": failed}
