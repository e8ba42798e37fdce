"""The training loop. The order of one step is the specification."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import cast

import torch
from torch import Tensor

from piti.config import Stage
from piti.errors import PitiError
from piti.job import JobContext, JobResult
from piti.training.batches import Batch, Batches
from piti.training.failures import WorkerError
from piti.training.gradients import StepLosses, accumulate_gradients
from piti.training.observers import Observers
from piti.training.optimizers import step_where
from piti.training.stages import TrainingStage
from piti.training.state import TrainingState
from piti.training.workers import Workers, use_precision


def train(context: JobContext, workers: Workers) -> JobResult:
    """Train the stage that `context.spec` names, to its end, and return the job's result.

    Every worker of the run calls this. A run with a whole checkpoint resumes from the newest. Raises PitiError:
    CheckpointError for weights, DataError for shards, and where steps keep being non-finite; StoppedError, after a
    checkpoint, where the run was asked to end or nobody follows it any more. Any other error is raised as a WorkerError
    that says where and when it happened.
    """
    stage = TrainingStage(cast(Stage, context.spec.name), context.config)
    use_precision(stage.settings.precision)
    state: TrainingState | None = None
    batches: Batches | None = None
    try:
        state = TrainingState.begin(stage, context.spec.inputs, workers, context.spec.output)
        resumed_step = state.progress.step or None
        batches = Batches(context, state)
        with closing(Observers(context, state, batches)) as observers:
            run(state, iter(batches), observers)
    except PitiError:
        raise
    except Exception as error:
        step, keys = (state.progress.step if state else None), (batches.keys if batches else [])
        raise WorkerError.of(error, stage, workers, step, keys) from error
    return {**observers.result(), "data": batches.statistics, "resumed_from_step": resumed_step}


def run(state: TrainingState, batches: Iterator[Batch], observers: Observers) -> None:
    """Steps until the stage's end. Between two logs, the host reads nothing from the device."""
    observers.begin()
    while state.progress.step < state.stage.settings.total_steps:
        state.begin_phase()  # where one begins

        batch = next(batches)  # this worker's share of the step's pictures
        losses = accumulate_gradients(state, batch.examples)  # losses, and backward: averaged over the workers

        learning_rate = state.learning_rate()
        learn(state, losses)  # finite check, clip, optimizer, EMA, count

        observers.log(losses, learning_rate)
        observers.validate()  # this and what follows: where it is due
        observers.sample()
        observers.checkpoint()
        observers.stop()


def learn(state: TrainingState, losses: StepLosses) -> None:
    """Update the weights with the accumulated gradients. If a number is not finite, the device skips the whole
    update."""
    is_usable = losses.is_finite
    clip_gradients(state, losses.gradient_norm)
    step_where(is_usable, state.optimizer, state.learning_rate())
    state.timesteps.update(losses.t, losses.terms["loss"], losses.is_there & is_usable)
    state.ema.update(state.model, state.ema_rate(), is_usable)
    state.progress.count(is_usable)


def clip_gradients(state: TrainingState, norm: Tensor) -> None:
    """Scale the gradient, whose norm is known, to a norm of at most `gradient_clip`."""
    clip = state.stage.settings.gradient_clip
    if clip is not None:
        torch.nn.utils.clip_grads_with_norm_(state.parameters(), clip, norm)
