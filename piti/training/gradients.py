"""One step's gradients: the losses of this worker's share of a batch, in microbatches, averaged over the workers."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from piti.seeds import seed_of
from piti.training.randomness import generator, normal_pictures, uniform
from piti.training.stages import Examples, TrainingStage
from piti.training.state import TrainingState
from piti.training.workers import Workers, autocast, without_synchronisation


@dataclass(frozen=True)
class StepLosses:
    """Losses of the B pictures of a step on the CPU, in the order of the stream, equal on all workers.

    `t` (B,) timesteps; `terms` name -> (B,), not importance-weighted, with "loss" their sum; `gradient_norm` of the
    averaged gradient. `is_finite` is false where any of them is not a number or infinite.
    """

    t: Tensor
    terms: dict[str, Tensor]
    gradient_norm: float
    is_finite: bool


@dataclass(frozen=True)
class Draw:
    """This step's random numbers for this worker's share of the batch: n pictures."""

    t: Tensor  # (n,) timesteps
    weights: Tensor  # (n,) importance weights of their losses
    noise: Tensor  # (n, 3, S, S)
    keep_condition: Tensor  # (n,) bool; False: trained on the null condition
    mix: Tensor  # (n,) in [0, 1), for the critic's gradient penalty


def draw(state: TrainingState, examples: Examples, workers: Workers) -> Draw:
    """Random numbers as functions of (seed, stage, step, position in the whole batch); see `randomness`."""
    stage, step = state.stage, state.progress.step
    settings, parts = stage.settings, (stage.config.seed, stage.name, step)
    first = workers.rank * (settings.batch_size // workers.world_size)
    positions = range(first, first + len(examples.pictures))
    t, weights = state.timesteps.sample(settings.batch_size, generator(*parts, "timesteps"))
    noise = normal_pictures(positions, examples.pictures.shape[1:], *parts, "noise")
    dropped = uniform(positions, *parts, "condition") < settings.phase_at(step).condition_dropout
    mix = uniform(positions, *parts, "mix")
    mine = slice(positions.start, positions.stop)
    return Draw(*(values.to(workers.device) for values in (t[mine], weights[mine], noise, ~dropped, mix)))


def accumulate_gradients(state: TrainingState, network: nn.Module, examples: Examples, workers: Workers) -> StepLosses:
    """Leave the step's mean gradient in the learning parameters and return what it was made of.

    `network` is `state.model`, wrapped for synchronisation. Every worker calls this with at least one picture. Where
    damaged samples made the batch smaller, its last picture fills the gap with weight 0, so that all workers take
    part in the same number of microbatches.
    """
    settings, step = state.stage.settings, state.progress.step
    torch.manual_seed(seed_of(state.stage.config.seed, state.stage.name, step, "dropout", workers.rank))
    num_pictures, share = len(examples.pictures), settings.batch_size // workers.world_size
    examples = examples.padded(share)
    drawn = draw(state, examples, workers)
    drawn.weights[num_pictures:] = 0
    micro = settings.microbatch_size or share
    terms: list[dict[str, Tensor]] = []
    for begin in range(0, share, micro):
        end = min(begin + micro, share)
        with nullcontext() if end == share else without_synchronisation(network):
            part = Draw(*(getattr(drawn, field.name)[begin:end] for field in fields(Draw)))
            found = microbatch_losses(state, network, examples.slice(begin, end), part)
            loss = torch.stack(list(found.values())).sum(dim=0)
            ((loss * part.weights).sum() / share).backward()  # type: ignore[no-untyped-call]
        terms.append({"loss": loss.detach(), **{name: value.detach() for name, value in found.items()}})
    joined = {name: torch.cat([entry[name] for entry in terms]) for name in terms[0]}
    return _gathered(state, drawn, joined, num_pictures, workers)


def microbatch_losses(state: TrainingState, network: nn.Module, examples: Examples, drawn: Draw) -> dict[str, Tensor]:
    """Each picture's loss terms (n,) with gradient: mse, vb and, for the upsampler, those on the predicted picture."""
    stage: TrainingStage = state.stage

    def predict(x_t: Tensor, time: Tensor) -> Tensor:
        with autocast(x_t.device, stage.settings.precision):
            output: Tensor = network(
                x_t, time, condition=examples.condition, low_res=examples.low_res, condition_mask=drawn.keep_condition
            )
        return output

    losses = stage.diffusion.training_losses(predict, examples.pictures, drawn.t, drawn.noise)
    terms = {"mse": losses["mse"], "vb": losses["vb"]}
    if state.picture_losses is not None and state.picture_losses.starts_at(state.progress.step):
        terms |= state.picture_losses(losses["x0"], examples.pictures, drawn.mix)
    return terms


def _gathered(
    state: TrainingState, drawn: Draw, terms: dict[str, Tensor], num_pictures: int, workers: Workers
) -> StepLosses:
    """What all workers found. Gradients are equal on all of them by now, so their norm is, too."""
    gradients = [parameter.grad for parameter in state.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    is_there = torch.arange(len(drawn.t), device=workers.device) < num_pictures
    table = workers.gather(torch.stack([is_there.double(), drawn.t.double(), *terms.values()], dim=1)).cpu()
    _, t, *columns = table[table[:, 0] == 1].unbind(dim=1)
    is_finite = all(bool(values.isfinite().all()) for values in columns) and bool(norm.isfinite())
    return StepLosses(t.long(), dict(zip(terms, columns, strict=True)), float(norm), is_finite)
