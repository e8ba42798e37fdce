"""The training loop. The order of one step is the specification."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, cast

import torch

from piti.checkpoints import checkpoint_uri
from piti.config import Stage
from piti.data.examples import Degraded
from piti.data.loader import TrainingLoader
from piti.errors import AbandonedError, PitiError
from piti.job import JobContext, JobResult
from piti.training.checkpointer import Checkpointer
from piti.training.ema import ema_rate_at
from piti.training.failures import WorkerError
from piti.training.gradients import StepLosses, accumulate_gradients
from piti.training.stages import TrainingStage
from piti.training.state import TrainingState
from piti.training.status import Status
from piti.training.validation import Validation
from piti.training.workers import Workers

MAX_SKIPPED_IN_A_ROW = 20


def train(context: JobContext, workers: Workers, resume_from: str | None = None) -> JobResult:
    """Train the stage that `context.spec` names, to its end, and return the job's result.

    Every worker of the run calls this. `resume_from` is the URI of a checkpoint of this run (None: begin afresh).
    Raises PitiError: CheckpointError for weights, DataError for shards, and where steps keep being non-finite;
    AbandonedError, after a checkpoint, where nobody follows the run any more. Any
    other error of the loop is raised as a WorkerError that says where and when it happened.
    """
    stage = TrainingStage(cast(Stage, context.spec.name), context.config)
    if resume_from is None:
        state = TrainingState.fresh(stage, context.spec.inputs, workers)
    else:
        state = TrainingState.resumed(stage, resume_from, workers)
    resumed_step = None if resume_from is None else state.progress.step
    if stage.settings.compile:
        state.model.compile()
    run = Run(context, state, workers)
    loader = _loader(context, stage, workers, start_sample=state.progress.step * stage.settings.batch_size)
    try:
        _loop(run, state, iter(loader))
    except PitiError:
        raise
    except Exception as error:
        keys = run.keys
        raise WorkerError.of(error, stage.name, stage.settings, workers.rank, state.progress.step, keys) from error
    finally:
        run.close()
    return {**_result(context, run, loader.statistics), "resumed_from_step": resumed_step}


def _loop(run: Run, state: TrainingState, batches: Iterator[dict[str, Any]]) -> None:
    """The order of a step."""
    stage, settings, progress, workers = state.stage, state.stage.settings, state.progress, run.workers
    network = workers.wrap(state.model)
    if not progress.initial_validation:
        run.validate()

    while progress.step < settings.total_steps:
        # A phase begins from the averaged weights of the one before.
        if progress.step in settings.phase_ends:
            state.begin_phase()

        # Data: this worker's share of the next batch.
        batch = next(batches)
        run.keys = batch["keys"]
        examples = stage.examples(batch, workers.device)

        # Losses and gradients: averaged over the workers.
        losses = accumulate_gradients(state, network, examples, workers)

        # Where all numbers are finite: clip, optimizer, the timestep sampler's memory, EMA.
        learning_rate = settings.phase_at(progress.step).learning_rate
        if losses.is_finite:
            _update(state, losses, learning_rate)
            in_phase = settings.step_in_phase(progress.step)
            state.ema.update(state.model, ema_rate_at(in_phase, settings.ema_rate, settings.ema_warmup))
        state.optimizer.zero_grad(set_to_none=True)

        # Count and log.
        _count(state, losses)
        run.status.step(losses, learning_rate)

        # Every so often, and at the end of a phase: validate, have a checkpoint written. A phase's own must be there.
        ends_phase = progress.step in settings.phase_ends
        if ends_phase or progress.step % settings.validate_every_steps == 0:
            run.validate()
        is_abandoned = progress.step % settings.log_every_steps == 0 and run.is_abandoned()
        if ends_phase or progress.step % settings.checkpoint_every_steps == 0 or is_abandoned:
            run.checkpoint(must_be_written=ends_phase or is_abandoned)

        # Stop: at the end, or where nobody waits for the run any more.
        if is_abandoned and progress.step < settings.total_steps:
            raise run.abandoned()


class Run:
    """What happens beside the steps of a training run: validation, checkpoints, and telling of them."""

    def __init__(self, context: JobContext, state: TrainingState, workers: Workers) -> None:
        self.workers = workers
        self.state = state
        self._context = context
        self.status = Status(context, state, workers)
        self.keys: list[str] = []  # of the pictures that are being learned from
        self._validation = Validation(state.stage, context.spec.inputs["shards"], degraded_input(context), workers)
        self._checkpointer = Checkpointer(context, state, self.status) if workers.is_first else None
        self._began_seconds = time.monotonic() - state.progress.seconds

    def is_abandoned(self) -> bool:
        """Whether nobody follows this run any more; every worker asks, and gets the same answer."""
        return bool(self.workers.agree(self.workers.is_first and self._context.is_abandoned()))

    def abandoned(self) -> AbandonedError:
        """What such a run ends with."""
        return self._context.abandoned()

    def validate(self) -> None:
        """Measure the averaged weights' losses."""
        progress, began_seconds = self.state.progress, time.monotonic()
        progress.last_validation = self._validation(self.state.ema.model)
        progress.last_validation_step = progress.step
        progress.initial_validation = progress.initial_validation or progress.last_validation
        self.status.validation(progress.last_validation, time.monotonic() - began_seconds)

    def checkpoint(self, *, must_be_written: bool) -> None:
        """Have a checkpoint written beside the training; with `must_be_written`, wait for it. Then raises its error."""
        began_seconds = time.monotonic()
        self.state.progress.seconds = began_seconds - self._began_seconds
        if self._checkpointer is not None:
            self._checkpointer.save()
            if must_be_written:
                self._checkpointer.wait()
        if must_be_written:
            self.workers.agree(None)  # no worker goes on, or ends the run, before it is there
        self.status.elsewhere(time.monotonic() - began_seconds)

    def close(self) -> None:
        """Finish what is being written."""
        if self._checkpointer is not None:
            self._checkpointer.close()
        self.status.close()

    def storage(self) -> dict[str, Any]:
        """How many writes failed, of metrics and of checkpoints, and what was lost in the end."""
        failed = 0 if self._checkpointer is None else self._checkpointer.num_failed()
        return {**self.status.storage(), "failed_checkpoints": failed}


def degraded_input(context: JobContext) -> Degraded:
    """Companions that the degrade job stored, or the recipe by which pictures are degraded as they are read."""
    return context.spec.inputs.get("degraded", context.config.degradation)


def _loader(context: JobContext, stage: TrainingStage, workers: Workers, start_sample: int) -> TrainingLoader:
    config, inputs = context.config, context.spec.inputs
    return TrainingLoader(
        inputs["shards"],
        config.data,
        degraded=degraded_input(context) if stage.is_upsampler else None,
        scale=config.scale,
        batch_size=stage.settings.batch_size,
        rank=workers.rank,
        world_size=workers.world_size,
        num_workers=config.cluster.loader_workers,
        seed=config.seed,
        start_sample=start_sample,
    )


def _update(state: TrainingState, losses: StepLosses, learning_rate: float) -> None:
    """One step of AdamW with this phase's learning rate."""
    clip = state.stage.settings.gradient_clip
    if clip is not None:
        norm = torch.tensor(losses.gradient_norm)
        torch.nn.utils.clip_grads_with_norm_(state.parameters(), clip, norm)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    state.optimizer.step()
    state.timesteps.update(losses.t, losses.terms["loss"])


def _count(state: TrainingState, losses: StepLosses) -> None:
    """Count the step. Raises PitiError where too many in a row could not be used."""
    progress = state.progress
    progress.step += 1
    progress.skipped_in_a_row = 0 if losses.is_finite else progress.skipped_in_a_row + 1
    progress.skipped_steps += not losses.is_finite
    if progress.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
        raise PitiError(
            f"{state.stage.name} diverged: the last {MAX_SKIPPED_IN_A_ROW} steps to step {progress.step} gave numbers "
            "that are not finite",
            f"lower training.{state.stage.name}'s learning_rate, set gradient_clip, or use precision fp32",
        )


def _result(context: JobContext, run: Run, data: dict[str, Any]) -> JobResult:
    state, progress = run.state, run.state.progress
    return {
        "checkpoint": checkpoint_uri(context.spec.output, progress.step),
        "steps": progress.step,
        "samples": progress.step * state.stage.settings.batch_size,
        "initial_validation": progress.initial_validation,
        "final_validation": progress.last_validation,
        "wall_seconds": round(progress.seconds, 3),
        "pictures_per_second": run.status.pictures_per_second(),
        "skipped_steps": progress.skipped_steps,
        "num_parameters": sum(parameter.numel() for parameter in state.model.parameters()),
        "num_learning_parameters": sum(parameter.numel() for parameter in state.parameters()),
        "origin": state.origin,
        "data": data,
        "storage": run.storage(),
    }
