"""Reports of a run's progress: log lines, job progress, `metrics.jsonl`, trackers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from piti import storage
from piti.checkpoints import checkpoint_uri
from piti.job import PROGRESS_INTERVAL_SECONDS, JobContext
from piti.training.batches import Batches
from piti.training.gradients import StepLosses
from piti.training.metrics import MetricsLog
from piti.training.publisher import Publisher
from piti.training.state import TrainingState
from piti.training.trackers import Tracker, open_trackers

FLUSH_SECONDS = 5.0  # how long a checkpoint waits for the metrics before it
WAITING_IS_MUCH = 0.1  # share of the time at which waiting for data is explained
STEADY_AFTER_STEPS = 2  # the first steps of a process are slow (caches, compilation) and would spoil the rate


class Status:
    """Collects steps and reports their means, through a publisher. Does nothing on workers other than the first."""

    def __init__(self, context: JobContext, state: TrainingState, batches: Batches) -> None:
        self._context = context
        self._state = state
        self._batches = batches
        self._window = (time.monotonic(), 0.0, 0.0)  # at the last report: now, seconds elsewhere, seconds waited
        self._picture: str | None = None
        self._settings = state.stage.settings
        self._publisher = Publisher() if state.workers.is_first else None
        self._log: MetricsLog | None = None
        self._trackers: list[Tracker] = []
        self._means: dict[str, float] = {}  # of the last report
        self._num_skipped = 0
        self._first_step = state.progress.step
        self._steady_since: tuple[float, int] | None = None
        self._spent_elsewhere_seconds = self._elsewhere_seconds = 0.0
        self._progress_seconds = float("-inf")
        self._lost: list[str] = []
        if self._publisher is not None:
            self._trackers = open_trackers(context, self._first_step)
            self._log = MetricsLog(context.spec.output, self._first_step, self._publisher, self._trackers)
            if self._first_step:
                context.info(
                    f"{state.stage.name}: resuming from {checkpoint_uri(context.spec.output, self._first_step)}"
                )
            context.info(f"{state.stage.name}: {_size(state)}, {self._where()}")

    def step(self, losses: StepLosses, learning_rate: float) -> None:
        """Count an optimizer step, which `state.progress` includes already, and report if due."""
        if self._log is None:
            return
        step = self._state.progress.step
        if step - self._first_step == STEADY_AFTER_STEPS:
            self._steady_since = (time.monotonic(), step)
            self._spent_elsewhere_seconds = 0.0
        seen = {**losses.means(), "gradient_norm": losses.gradient_norm.double()}
        self._state.step_sums.add(seen, losses.is_finite)
        if step % self._settings.log_every_steps == 0 or step == self._settings.total_steps:
            self._report(learning_rate)
        now = time.monotonic()
        is_due = step == self._settings.total_steps or now - self._progress_seconds >= PROGRESS_INTERVAL_SECONDS
        if self._publisher is not None and is_due:
            self._progress_seconds = now
            self._publisher.put("progress", self._write_progress)

    def _write_progress(self) -> None:
        """Called by the publisher: a write that had to wait tells what is true by then."""
        step, total = self._state.progress.step, self._settings.total_steps
        self._context.progress(step, total, self._message(), force=True, picture=self._picture)

    def validation(self, values: Mapping[str, float] | None, seconds: float) -> None:
        """Report a validation, which took `seconds`; None: storage failed."""
        self.elsewhere(seconds)
        if self._log is None:
            return
        step = self._state.progress.step
        if values is None:
            self._missed(f"the validation of step {step}")
            return
        self._log.add(step, "validation", values)
        self._log.publish()
        shown = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        self._context.info(f"{self._state.stage.name}: step {step}, validation {shown} ({seconds:.1f} s)")

    def samples(self, png: bytes | None, seconds: float) -> None:
        """Take in drawn pictures, as a PNG, which took `seconds`: `<run>/samples/step-00000100.png` and trackers. None:
        their conditions could not be read."""
        self.elsewhere(seconds)
        if self._log is None or self._publisher is None:
            return
        step, publisher = self._state.progress.step, self._publisher
        if png is None:
            self._missed(f"the pictures of step {step}")
            return
        uri = storage.join(self._context.spec.output, "samples", f"step-{step:08d}.png")

        def write() -> None:
            storage.write_bytes(uri, png)
            self._picture = max(self._picture or uri, uri)  # the newest: an older step's may be written later
            publisher.put("progress", self._write_progress)  # at the run's end, no other progress tells of it

        publisher.put(f"pictures of step {step}", write)
        self._log.add_picture(step, "samples", png)
        self._context.info(f"{self._state.stage.name}: step {step}, drew pictures ({seconds:.1f} s)")

    def elsewhere(self, seconds: float) -> None:
        """Time not spent in training steps."""
        self._spent_elsewhere_seconds += seconds
        self._elsewhere_seconds += seconds

    def publish(self) -> None:
        """Start writing all metrics so far."""
        if self._log is not None:
            self._log.publish()

    def flush(self) -> None:
        """Wait a little for what is being written."""
        if self._publisher is not None:
            self._publisher.flush(FLUSH_SECONDS)

    def close(self, deadline: float) -> None:
        """Publish the remaining reports, until `deadline` of time.monotonic(), whatever hangs."""
        if self._log is None or self._publisher is None:
            return
        self._log.publish()
        for tracker in self._trackers:
            tracker.end()  # all side by side, before the first is waited for
        self._lost += self._publisher.close(deadline)
        self._lost += [name for tracker in self._trackers for name in tracker.close(deadline)]

    def _missed(self, what: str) -> None:
        """Say that something is left out because it could not be read."""
        self._lost.append(what)
        self._context.info(f"{self._state.stage.name}: {what} cannot be made and is left out; training goes on")

    def storage(self) -> dict[str, Any]:
        """How many writes failed, and what was lost in the end."""
        failed = 0 if self._publisher is None else self._publisher.num_failed
        failed += sum(tracker.num_failed for tracker in self._trackers)
        return {"failed_writes": failed, "lost": self._lost}

    def pictures_per_second(self) -> float | None:
        """Steady training rate over all workers; None for the first few steps."""
        if self._steady_since is None:
            return None
        began_seconds, began_step = self._steady_since
        seconds = time.monotonic() - began_seconds - self._spent_elsewhere_seconds
        steps = self._state.progress.step - began_step
        return steps * self._settings.batch_size / seconds if steps and seconds > 0 else None

    def _report(self, learning_rate: float) -> None:
        self._read()
        values = {**self._means, "learning_rate": learning_rate, "skipped_steps": float(self._num_skipped)}
        values["memory_gigabytes"] = self._state.workers.peak_memory_bytes() / 1e9
        if (rate := self.pictures_per_second()) is not None:
            values["pictures_per_second"] = rate
        values["waiting_for_data"] = waiting = self._share_waited()
        if waiting > WAITING_IS_MUCH and self._state.progress.step - self._first_step > STEADY_AFTER_STEPS:
            name, why = self._state.stage.name, self._batches.why_waiting()
            self._context.info(f"{name}: {100 * waiting:.0f} % of the time went into waiting for pictures; {why}")
        if self._log is not None:
            self._log.add(self._state.progress.step, "train", values)
        self._context.info(f"{self._state.stage.name}: {self._where()}, {self._message()}")

    def _share_waited(self) -> float:
        """Share of the time since the last report, but for validation and the like, that was spent waiting for data."""
        then = self._window
        now = self._window = (time.monotonic(), self._elsewhere_seconds, self._batches.waited_seconds)
        passed, elsewhere, waited = (after - before for after, before in zip(now, then, strict=True))
        return waited / max(passed - elsewhere, 1e-9)

    def _read(self) -> None:
        """Get the sums from the device, all at once. A mean is over the steps that had the value."""
        taken = self._state.step_sums.take()
        skipped = self._state.progress.skipped_steps.double().to(self._state.workers.device)
        *sums, num_skipped = torch.cat([*taken.values(), skipped.view(1)]).tolist()
        pairs = zip(taken, sums[::2], sums[1::2], strict=True)
        self._means = {name: total / num_steps for name, total, num_steps in pairs if num_steps}
        self._num_skipped = int(num_skipped)

    def _where(self) -> str:
        return f"step {self._state.progress.step} of {self._settings.total_steps}"

    def _message(self) -> str:
        """Loss, rate and time left, as far as they are known."""
        parts = []
        if self._means:
            parts.append(f"loss {self._means['loss']:.4f}")
        if (rate := self.pictures_per_second()) is not None:
            left = (self._settings.total_steps - self._state.progress.step) * self._settings.batch_size / rate
            parts += [f"{rate:.3g} pictures/s", f"{_duration(left)} left"]
        if self._num_skipped:
            parts.append(f"{self._num_skipped} steps skipped")
        return ", ".join(parts)


def _size(state: TrainingState) -> str:
    learning = sum(parameter.numel() for parameter in state.parameters())
    total = sum(parameter.numel() for parameter in state.model.parameters())
    return f"{learning / 1e6:.2f} of {total / 1e6:.2f} million parameters learn"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
