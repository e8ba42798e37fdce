"""One step's random numbers, gradients and averages."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from piti.errors import PitiError
from piti.job import JobContext
from piti.models import PITIModel
from piti.seeds import seed_of
from piti.training import loop
from piti.training.divergence import MAX_SKIPPED_IN_A_ROW
from piti.training.ema import EMA, ema_rate_at
from piti.training.gradients import Microbatch, StepLosses, accumulate_gradients, random_numbers
from piti.training.loop import train
from piti.training.metrics import read_metrics
from piti.training.randomness import generator, normal_pictures, uniform
from piti.training.stages import Examples, TrainingStage
from piti.training.state import TrainingState
from piti.training.status import Status
from piti.training.workers import Workers

CPU = Workers()


def state_of(pipeline: Any, **overrides: Any) -> TrainingState:
    # Without dropout: its masks are the one thing that depends on how a batch is divided.
    return TrainingState.fresh(
        TrainingStage("pretrain", pipeline.config(models__base__dropout=0.0, **overrides)), {}, CPU
    )


def examples_of(n: int, uniform_tensor: Any) -> Examples:
    pictures = uniform_tensor("pictures", (n, 3, 16, 16)).float()
    return Examples(pictures, uniform_tensor("condition", (n, 1, 32, 32)).float(), None)


def gradient_of(state: TrainingState) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in state.parameters() if parameter.grad is not None])


def test_numbers_are_functions_of_their_names() -> None:
    assert seed_of(1, "a", 2) == seed_of(1, "a", 2)
    assert len({seed_of(1, "a", 2), seed_of(1, "a", 3), seed_of(2, "a", 2), seed_of(1, "b", 2)}) == 4
    together = normal_pictures(range(4), (3, 8, 8), 7, "noise")
    assert torch.equal(together[2:], normal_pictures([2, 3], (3, 8, 8), 7, "noise"))
    assert uniform(range(1000), 0, "x").mean() == pytest.approx(0.5, abs=0.05)
    before = torch.random.get_rng_state()
    torch.rand(3, generator=generator("x"))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("world_size", [2, 4])
def test_workers_draw_parts_of_the_same_numbers(pipeline: Any, uniform: Any, world_size: int) -> None:
    """What one worker draws for a batch of 4, two or four draw between them."""
    state = state_of(pipeline)
    whole = random_numbers(state, examples_of(4, uniform))
    share = 4 // world_size
    parts = []
    for rank in range(world_size):
        state.workers = Workers(rank, world_size)
        parts.append(random_numbers(state, examples_of(share, uniform)))
    for name in ("t", "weights", "noise", "keep_condition", "mix"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)), name


def test_conditions_are_dropped_as_often_as_configured(pipeline: Any, uniform: Any) -> None:
    phase = [{"steps": 500, "learning_rate": 1e-3, "condition_dropout": 0.3}]
    state = state_of(pipeline, training__pretrain__phases=phase)
    kept = []
    for step in range(400):
        state.progress.step = step
        kept.append(random_numbers(state, examples_of(4, uniform)).keep_condition.float().mean())
    assert torch.stack(kept).mean() == pytest.approx(0.7, abs=0.04)  # 1600 draws: 3.5 standard deviations


def test_microbatches_change_rounding_only(pipeline: Any, uniform: Any) -> None:
    """Gradient accumulation over microbatches of 1, and of 3 and 1, against the batch at once."""
    results = []
    for micro in (None, 1, 3):
        state = state_of(pipeline, training__pretrain__microbatch_size=micro)
        losses = accumulate_gradients(state, examples_of(4, uniform))
        results.append((gradient_of(state), losses.terms["loss"]))
    for gradient, loss in results[1:]:
        assert torch.allclose(gradient, results[0][0], rtol=1e-4, atol=1e-6)
        assert torch.allclose(loss, results[0][1], rtol=1e-5)


def test_a_gap_left_by_a_damaged_sample_weighs_nothing(pipeline: Any, uniform: Any) -> None:
    """Three pictures of four: the gradient is that of those three (divided by four), and three losses are reported."""
    state = state_of(pipeline)
    whole = examples_of(4, uniform)
    losses = accumulate_gradients(state, whole.slice(0, 3))
    assert losses.is_there.tolist() == [True, True, True, False]
    expected = (losses.terms["loss"] * losses.weights)[:3].mean()
    assert float(losses.means()["loss"]) == pytest.approx(float(expected), rel=1e-12)
    with_gap = gradient_of(state)
    state.optimizer.zero_grad()
    other = replace(whole, pictures=torch.cat([whole.pictures[:3], whole.pictures[2:3] * 0.5]))
    accumulate_gradients(state, other.slice(0, 3))
    assert torch.equal(with_gap, gradient_of(state))


def test_a_damaged_sample_changes_no_other_pictures_numbers(pipeline: Any, uniform: Any) -> None:
    """The second of four is damaged: the others' timesteps and losses are those of the whole batch, on one worker and
    on two, of which the first has lost one of its pictures."""
    state = state_of(pipeline)
    torch.nn.init.normal_(state.model.decoder.out[2].weight, std=0.1, generator=generator("out"))  # type: ignore[arg-type]
    whole = examples_of(4, uniform)

    def losses_of(present: list[int], places: list[int], workers: Workers) -> tuple[torch.Tensor, torch.Tensor]:
        state.workers = workers
        pictures = Examples(whole.pictures[present], whole.condition[present], None, places)
        spread, is_there = pictures.spread(4 // workers.world_size)
        drawn = random_numbers(state, spread)
        losses = Microbatch(state, spread, drawn, slice(0, len(is_there))).losses(state.model)["mse"]
        return drawn.t[is_there], losses[is_there]

    t, losses = losses_of([0, 1, 2, 3], [0, 1, 2, 3], CPU)
    assert len(set(t.tolist())) == 4, "timesteps are alike: nothing is proved"
    alone = losses_of([0, 2, 3], [0, 2, 3], CPU)
    parts = [losses_of([0], [0], Workers(0, 2)), losses_of([2, 3], [0, 1], Workers(1, 2))]
    for found in (alone, tuple(torch.cat(part) for part in zip(*parts, strict=True))):
        assert torch.equal(found[0], t[[0, 2, 3]])
        assert torch.allclose(found[1], losses[[0, 2, 3]], rtol=1e-5)


def test_a_gap_in_the_middle_weighs_nothing(pipeline: Any, uniform: Any) -> None:
    """What the second picture adds to the gradient of all four is missing, and nothing else; the loop takes what the
    loader tells of places."""
    state = state_of(pipeline)
    torch.nn.init.normal_(state.model.decoder.out[2].weight, std=0.1, generator=generator("out"))  # type: ignore[arg-type]
    images = ((uniform("images", (4, 3, 32, 32)) + 1) * 127.5).round().to(torch.uint8)
    gradients: list[torch.Tensor] = []
    for places in ([0, 1, 2, 3], [1], [0, 2, 3]):
        condition = torch.zeros((len(places), 1, 32, 32), dtype=torch.uint8)
        batch = {"image": images[places], "condition": condition, "places": places}
        state.optimizer.zero_grad()
        losses = accumulate_gradients(state, state.stage.examples(batch, CPU.device))
        gradients.append(gradient_of(state))
    whole, second, with_gap = gradients
    scale = float(whole.abs().max())
    assert float(second.abs().max()) > 0.01 * scale, "the second picture weighs nothing anyway"
    assert float((with_gap - (whole - second)).abs().max()) < 1e-5 * scale
    assert losses.is_there.tolist() == [True, False, True, True]
    expected = (losses.terms["loss"] * losses.weights)[[0, 2, 3]].mean()
    assert float(losses.means()["loss"]) == pytest.approx(float(expected), rel=1e-12)


def test_the_logged_loss_is_importance_weighted(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three timesteps, whose histories fill: then large losses are drawn more often, and weigh less."""
    seen: list[StepLosses] = []
    step = Status.step
    monkeypatch.setattr(Status, "step", lambda self, losses, rate: (seen.append(losses), step(self, losses, rate)))
    phase = [{"steps": 24, "learning_rate": 1e-5}]
    context = pipeline.context("pretrain", diffusion__base__steps=3, training__pretrain__phases=phase)
    train(context, CPU)
    records = [record for record in read_metrics(context.spec.output) if record["split"] == "train"]
    assert not torch.equal(seen[-1].weights, torch.ones(4)), "timesteps are drawn alike: nothing is proved"
    for record, losses in zip(records, seen, strict=True):
        assert record["loss"] == pytest.approx(float((losses.terms["loss"] * losses.weights).mean()), rel=1e-6)
    # The mean over all timesteps of the last steps, and what the logged values say it is.
    late = seen[12:]
    t, loss = (torch.cat([entry.t for entry in late]), torch.cat([entry.terms["loss"] for entry in late]))
    true = torch.stack([loss[t == number].mean() for number in range(3)]).mean()
    logged = torch.tensor([record["loss"] for record in records[12:]]).mean()
    plain = loss.mean()
    assert abs(logged - true) < 0.5 * abs(plain - true)


def test_dropout_follows_the_microbatch_not_the_worker(pipeline: Any, uniform: Any) -> None:
    """With the same microbatches, one worker and two have the same masks."""
    config = pipeline.config(models__base__dropout=0.5, training__pretrain__microbatch_size=2)
    whole = examples_of(4, uniform)

    def losses_of(workers: Workers) -> list[torch.Tensor]:
        state = TrainingState.fresh(TrainingStage("pretrain", config), {}, CPU)
        torch.nn.init.normal_(state.model.decoder.out[2].weight, std=0.1, generator=generator("out"))  # type: ignore[arg-type]
        share = 4 // workers.world_size
        mine = whole.slice(workers.rank * share, (workers.rank + 1) * share)
        state.workers = workers
        drawn = random_numbers(state, mine)
        places = [slice(begin, begin + 2) for begin in range(0, share, 2)]
        return [Microbatch(state, mine, drawn, place).losses(state.model)["mse"] for place in places]

    together = losses_of(CPU)
    apart = [*losses_of(Workers(0, 2)), *losses_of(Workers(1, 2))]
    assert torch.equal(torch.cat(together), torch.cat(apart))
    assert not torch.equal(*together)


class Diverging(PITIModel):
    """Gives numbers that are not finite in chosen calls."""

    bad_calls: range = range(0)
    calls: int = 0

    def forward(self, x_t: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        output = super().forward(x_t, *arguments, **named)
        if self.training:
            type(self).calls += 1
            if type(self).calls - 1 in type(self).bad_calls:
                output = output * torch.nan
        return output


def diverging(monkeypatch: pytest.MonkeyPatch, bad_calls: range) -> None:
    """Make fresh networks diverge in the given training steps (one call a step)."""
    fresh = TrainingState.fresh.__func__  # type: ignore[attr-defined]

    def begin(cls: Any, *arguments: Any) -> TrainingState:
        state: TrainingState = fresh(cls, *arguments)
        state.model.__class__ = Diverging
        return state

    monkeypatch.setattr(Diverging, "bad_calls", bad_calls)
    monkeypatch.setattr(Diverging, "calls", 0)
    monkeypatch.setattr(loop.TrainingState, "fresh", classmethod(begin))


def test_a_step_that_is_not_finite_is_skipped_and_counted(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of six steps gives NaN: it changes nothing, training goes on, and the result says so."""
    diverging(monkeypatch, range(2, 3))
    context: JobContext = pipeline.context("pretrain")
    result = train(context, CPU)
    assert result["skipped_steps"] == 1
    assert result["steps"] == 6
    assert result["final_validation"]["loss"] < result["initial_validation"]["loss"]
    last = [record for record in read_metrics(context.spec.output) if record["split"] == "train"][-1]
    assert last["skipped_steps"] == 1


def test_a_run_that_stays_non_finite_ends_with_advice(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    phase = [{"steps": 100, "learning_rate": 1e-3}]
    diverging(monkeypatch, range(1, 100))
    with pytest.raises(PitiError, match=f"last {MAX_SKIPPED_IN_A_ROW} steps.*back to step 0 once"):
        train(pipeline.context("pretrain", training__pretrain__phases=phase), CPU)


def test_average_in_closed_form(pipeline: Any) -> None:
    """Weights that go from 0 to 1 and stay: after n updates of rate r the average is 1 - r^n; frozen ones are shared."""
    model = state_of(pipeline).model
    model.decoder.requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    ema = EMA(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    for _ in range(5):
        ema.update(model, 0.9, torch.tensor(True))
    ema.update(model, 0.5, torch.tensor(False))  # a step that was left out
    averaged = ema.network(model)
    for average in averaged.encoder.parameters():
        assert torch.allclose(average, torch.full_like(average, 1 - 0.9**5), atol=1e-6)
    for average, parameter in zip(averaged.decoder.parameters(), model.decoder.parameters(), strict=True):
        assert average.data_ptr() == parameter.data_ptr()


def test_warmup_of_the_average() -> None:
    assert ema_rate_at(0, 0.9999, warmup=True) == pytest.approx(0.1)
    assert ema_rate_at(90, 0.9999, warmup=True) == pytest.approx(0.91)
    assert ema_rate_at(10**6, 0.9999, warmup=True) == 0.9999
    assert ema_rate_at(0, 0.9999, warmup=False) == 0.9999
