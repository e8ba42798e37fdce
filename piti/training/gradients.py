"""One step's gradients: the losses of this worker's share of a batch, in microbatches, averaged over the workers."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from piti.seeds import seed_of
from piti.training.randomness import generator, normal_pictures, uniform
from piti.training.sharding import whole
from piti.training.stages import Examples
from piti.training.state import TrainingState
from piti.training.workers import Workers, autocast, sent, without_synchronisation


@dataclass(frozen=True)
class StepLosses:
    """Losses of a step's B places, in the order of the stream, on the device, equal on all workers.

    `is_there` (B,) is false at places without a picture; ignore the numbers there. `t` (B,) timesteps and `weights`
    (B,) importance weights; `terms` name -> (B,), without these weights, with "loss" their sum; `gradient_norm` () of
    the averaged gradient. `is_finite` () is false where any of them is not a number or infinite.
    """

    is_there: Tensor
    t: Tensor
    weights: Tensor
    terms: dict[str, Tensor]
    gradient_norm: Tensor
    is_finite: Tensor

    def means(self) -> dict[str, Tensor]:
        """Importance-weighted means () float64, as published: they estimate the losses over all timesteps alike."""
        count = self.is_there.sum()
        return {
            name: torch.where(self.is_there, values * self.weights, 0.0).sum() / count
            for name, values in self.terms.items()
        }


@dataclass(frozen=True)
class RandomNumbers:
    """This step's random numbers for this worker's share of the batch: n pictures."""

    t: Tensor  # (n,) timesteps
    weights: Tensor  # (n,) importance weights of their losses
    noise: Tensor  # (n, 3, S, S)
    keep_condition: Tensor  # (n,) bool; False: trained on the null condition
    mix: Tensor  # (n,) in [0, 1), for the critic's gradient penalty


def random_numbers(state: TrainingState, examples: Examples) -> RandomNumbers:
    """Random numbers as functions of (seed, stage, step, position in the whole batch); see `randomness`."""
    stage, step, workers = state.stage, state.progress.step, state.workers
    settings, parts = stage.settings, (stage.config.seed, stage.name, step)
    first = workers.share(settings.batch_size).start
    positions = range(first, first + len(examples.pictures))
    t, weights = state.timesteps.sample(settings.batch_size, generator(*parts, "timesteps"))
    noise = normal_pictures(positions, examples.pictures.shape[1:], *parts, "noise")
    dropped = uniform(positions, *parts, "condition") < settings.phase_at(step).condition_dropout
    mix = uniform(positions, *parts, "mix")
    # Places beyond the batch are padding of the last share.
    mine = sent(torch.tensor(positions).clamp(max=settings.batch_size - 1), workers.device)
    noise, keep, mix = (sent(values, workers.device) for values in (noise, ~dropped, mix))
    return RandomNumbers(t[mine], weights[mine], noise, keep, mix)


def accumulate_gradients(state: TrainingState, examples: Examples) -> StepLosses:
    """Accumulate the step's mean gradient in the trained parameters and return the losses.

    Every worker calls this with at least one picture. Where damaged samples made the batch smaller, or it does not divide
    into equal shares, other pictures fill the gaps with weight 0, so that all workers take part in the same number of
    microbatches, and every picture gets the random numbers of its position in the batch. Whatever the number of workers, each picture weighs 1 / batch_size. The critic takes its step first, as
    published. Nothing is read from the device.
    """
    settings, network, workers = state.stage.settings, state.network, state.workers
    share = -(-settings.batch_size // workers.world_size)
    mean_share = settings.batch_size / workers.world_size  # gradients are averaged over the workers afterwards
    examples, is_there = examples.spread(share)
    numbers = random_numbers(state, examples)
    size = settings.microbatch_size or share
    parts = [
        Microbatch(state, examples, numbers, slice(begin, min(begin + size, share))) for begin in range(0, share, size)
    ]
    picture_losses = state.picture_losses
    if picture_losses is not None and not picture_losses.starts_at(state.progress.step):
        picture_losses = None
    teaches = picture_losses is not None and picture_losses.has_critic
    if picture_losses is not None and teaches and len(parts) > 1:
        for part in parts:  # without gradient: the predictions of all come before the critic's step, that before them
            with torch.no_grad():
                predicted = part.losses(state.model)["x0"]
            picture_losses.accumulate_critic(predicted, *part.for_critic(is_there / mean_share))
        picture_losses.step_critic()
    terms: list[dict[str, Tensor]] = []
    for part in parts:
        with nullcontext() if part is parts[-1] else without_synchronisation(network):
            losses = part.losses(network)
            if picture_losses is not None and teaches and len(parts) == 1:
                picture_losses.accumulate_critic(losses["x0"], *part.for_critic(is_there / mean_share))
                picture_losses.step_critic()
            found = {"mse": losses["mse"], "vb": losses["vb"]}
            if picture_losses is not None:
                found |= picture_losses(losses["x0"], part.examples.pictures)
            loss = torch.stack(list(found.values())).sum(dim=0)
            weights = (numbers.weights * is_there)[part.place]
            ((loss * weights).sum() / mean_share).backward()  # type: ignore[no-untyped-call]
        terms.append({"loss": loss.detach(), **{name: value.detach() for name, value in found.items()}})
    joined = {name: torch.cat([entry[name] for entry in terms]) for name in terms[0]}
    return _gathered(numbers, joined, is_there, state.parameters(), workers)


class Microbatch:
    """The examples and random numbers at `place` of a worker's share of a step."""

    def __init__(self, state: TrainingState, examples: Examples, numbers: RandomNumbers, place: slice) -> None:
        self.place = place
        self.examples = examples.slice(place.start, place.stop)
        self._stage = state.stage
        self._numbers = RandomNumbers(*(getattr(numbers, field.name)[place] for field in fields(RandomNumbers)))
        first = state.workers.share(state.stage.settings.batch_size).start + place.start
        self._dropout_seed = seed_of(
            state.stage.config.seed, state.stage.name, state.progress.step, "dropout", first, place.stop - place.start
        )

    def losses(self, network: nn.Module) -> dict[str, Tensor]:
        """`GaussianDiffusion.training_losses` of each picture; with the same dropout whenever it is called."""
        torch.manual_seed(self._dropout_seed)
        examples, numbers = self.examples, self._numbers

        def predict(x_t: Tensor, time: Tensor) -> Tensor:
            with autocast(x_t.device, self._stage.settings.precision):
                output: Tensor = network(
                    x_t,
                    time,
                    condition=examples.condition,
                    low_res=examples.low_res,
                    condition_mask=numbers.keep_condition,
                )
            return output

        return self._stage.diffusion.training_losses(predict, examples.pictures, numbers.t, numbers.noise)

    def for_critic(self, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The real pictures, `mix`, and these pictures' part of the share's `weights`."""
        return self.examples.pictures, self._numbers.mix, weights[self.place]


def _gathered(
    numbers: RandomNumbers,
    terms: dict[str, Tensor],
    is_there: Tensor,
    parameters: Iterable[nn.Parameter],
    workers: Workers,
) -> StepLosses:
    """The losses of all workers. The averaged gradients, and so their norm, are equal on all workers."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = whole(torch.nn.utils.get_total_norm(gradients))
    columns = [is_there.double(), numbers.t.double(), numbers.weights.double(), *(v.double() for v in terms.values())]
    there, t, weights, *columns = workers.gather(torch.stack(columns, dim=1)).unbind(dim=1)
    is_there = there == 1
    is_finite = norm.isfinite() & (torch.stack(columns).isfinite() | ~is_there).all()
    return StepLosses(is_there, t.long(), weights, dict(zip(terms, columns, strict=True)), norm, is_finite)
