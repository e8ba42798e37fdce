"""The training loop. The order of one step is the specification."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import torch

from piti.checkpoints import checkpoint_uri, prune_checkpoints
from piti.config import Stage
from piti.data.examples import Degraded
from piti.data.loader import TrainingLoader
from piti.errors import PitiError
from piti.job import JobContext, JobResult
from piti.provenance import code_versions
from piti.training.ema import ema_rate_at
from piti.training.gradients import StepLosses, accumulate_gradients
from piti.training.stages import TrainingStage
from piti.training.state import TrainingState
from piti.training.status import Status
from piti.training.validation import Validation
from piti.training.workers import Workers

MAX_SKIPPED_IN_A_ROW = 20

Report = Callable[[int, dict[str, float], str], None]
"""Called on every worker after each checkpoint: step, validation losses, URI."""


def train(
    context: JobContext, workers: Workers, resume_from: str | None = None, report: Report | None = None
) -> JobResult:
    """Train the stage that `context.spec` names, to its end, and return the job's result.

    Every worker of the run calls this. `resume_from` is the URI of a checkpoint of this run (None: begin afresh).
    Raises PitiError: CheckpointError for weights, DataError for shards, and where steps keep being non-finite;
    AbandonedError, after a checkpoint, where nobody follows the run any more.
    """
    spec, run = context.spec, context.spec.output
    stage = TrainingStage(cast(Stage, spec.name), context.config)
    settings = stage.settings
    began_seconds = time.monotonic()
    if resume_from is None:
        state = TrainingState.fresh(stage, spec.inputs, workers)
    else:
        state = TrainingState.resumed(stage, resume_from, workers)
    progress, resumed_step, resumed_seconds = state.progress, state.progress.step, state.progress.seconds
    if settings.compile:
        state.model.compile()
    network = workers.wrap(state.model)
    validate = Validation(stage, spec.inputs["shards"], degraded_input(context), workers)
    loader = _loader(context, stage, workers, start_sample=progress.step * settings.batch_size)
    batches = iter(loader)
    status = Status(context, state, workers)
    checkpoint = resume_from

    while True:
        step, is_last = progress.step, progress.step == settings.total_steps
        is_new = resume_from is None or step != resumed_step  # what happened at this step is in the checkpoint
        is_abandoned = step % settings.log_every_steps == 0 and workers.agree(
            workers.is_first and context.is_abandoned()
        )

        # Validation: before the first step, every so often, and at the end.
        if is_new and (step % settings.validate_every_steps == 0 or is_last):
            stopwatch = time.monotonic()
            progress.last_validation = validate(state.ema.model)
            progress.initial_validation = progress.initial_validation or progress.last_validation
            status.validation(progress.last_validation, time.monotonic() - stopwatch)

        # Checkpoint: every so often, at the end, and where nobody follows the run any more.
        if is_new and ((step and step % settings.checkpoint_every_steps == 0) or is_last or is_abandoned):
            stopwatch = time.monotonic()
            progress.seconds = resumed_seconds + stopwatch - began_seconds
            checkpoint = _publish_checkpoint(context, state, workers, status)
            if report is not None:
                report(step, progress.last_validation, checkpoint)
            status.checkpoint(checkpoint, time.monotonic() - stopwatch)

        # Stop.
        if is_last:
            break
        if is_abandoned:
            raise context.abandoned()

        # Data: this worker's share of the next batch.
        examples = stage.examples(next(batches), workers.device)

        # Gradients: averaged over the workers.
        losses = accumulate_gradients(state, network, examples, workers)

        # Optimizer, and the timestep sampler's memory; left out where a number is not finite.
        learning_rate = settings.phase_at(step).learning_rate
        if losses.is_finite:
            _update(state, losses, learning_rate)

            # EMA.
            state.ema.update(state.model, ema_rate_at(step, settings.ema_rate, settings.ema_warmup))
        state.optimizer.zero_grad(set_to_none=True)
        _count(state, losses)

        # Status.
        status.step(losses, learning_rate)

    status.close()
    result = _result(state, status, checkpoint or checkpoint_uri(run, progress.step), loader.statistics)
    return {**result, "resumed_from_step": None if resume_from is None else resumed_step}


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
        batch_size=stage.settings.batch_size // workers.world_size,
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


def _publish_checkpoint(context: JobContext, state: TrainingState, workers: Workers, status: Status) -> str:
    """Write the checkpoint once and tell every worker its URI, after the metrics that lead up to it."""
    uri = None
    if workers.is_first:
        status.publish()
        spec, progress = context.spec, state.progress
        about: dict[str, Any] = {
            "stage": state.stage.name, "step": progress.step, "run": spec.output, "fingerprint": spec.fingerprint,
            "samples": progress.step * state.stage.settings.batch_size, "seed": context.config.seed,
            "validation": progress.last_validation, "origin": state.origin, "code": code_versions(),
        }  # fmt: skip
        uri = state.save(spec.output, about)
        prune_checkpoints(spec.output, state.stage.settings.keep_checkpoints)
    return cast(str, workers.agree(uri))


def _result(state: TrainingState, status: Status, checkpoint: str, data: dict[str, Any]) -> JobResult:
    progress = state.progress
    return {
        "checkpoint": checkpoint,
        "steps": progress.step,
        "samples": progress.step * state.stage.settings.batch_size,
        "initial_validation": progress.initial_validation,
        "final_validation": progress.last_validation,
        "wall_seconds": round(progress.seconds, 3),
        "pictures_per_second": status.pictures_per_second(),
        "skipped_steps": progress.skipped_steps,
        "num_parameters": sum(parameter.numel() for parameter in state.model.parameters()),
        "num_learning_parameters": sum(parameter.numel() for parameter in state.parameters()),
        "origin": state.origin,
        "data": data,
    }
