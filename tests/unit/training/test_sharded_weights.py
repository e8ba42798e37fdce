"""`cluster.strategy: fsdp`: workers that hold a part of the weights each train as one that holds all of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from piti.checkpoints import checkpoint_uri
from piti.config import Config, Stage
from piti.job import JobContext, JobSpec
from piti.models import PITIModel, build_model
from piti.training.gradients import accumulate_gradients
from piti.training.loop import learn, train
from piti.training.metrics import read_metrics
from piti.training.sharding import mine, whole
from piti.training.stages import Examples, TrainingStage
from piti.training.state import TrainingState
from piti.training.workers import Workers
from tests.unit.training.test_changing_workers import go_on
from tests.unit.training.test_training_resume import differences, everything
from tests.worker_processes import run_workers

TOLERANCE = 1e-5
BATCH = 3  # which two workers divide into one and two, so that the first pads its share
STEPS = 4
STAGES: tuple[Stage, ...] = ("pretrain", "stage1", "upsampler")


def options(stage: Stage, **more: Any) -> dict[str, Any]:
    settings = {
        "batch_size": BATCH, "microbatch_size": 1, "sample_every_steps": 3, "checkpoint_every_steps": 100,
        "phases": [{"steps": STEPS, "learning_rate": 1e-4, "condition_dropout": 0.3}], **more,
    }  # fmt: skip
    found = {f"training__{stage}__{name}": value for name, value in settings.items()}
    return {"cluster__strategy": "fsdp", "models__base__dropout": 0.0, **found}


def begun(config: Config, stage: Stage, workers: Workers) -> TrainingState:
    """A state whose gradients reach every weight and whose losses have different weights."""
    of_stage = TrainingStage(stage, config)
    model, generator = build_model(of_stage.model_config, seed=1), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():  # as branches begin, through which nothing passes
                parameter.normal_(std=0.05, generator=generator)
    state = TrainingState(of_stage, model, workers, {})
    if stage != "upsampler":
        histories = {"losses": torch.rand(1000, 10, generator=generator), "counts": torch.full((1000,), 10)}
        state.timesteps.load_state_dict(histories)
    return state


def examples(stage: Stage, place: range) -> Examples:
    size, generator = 32 if stage == "upsampler" else 16, torch.Generator().manual_seed(3)
    shapes = {"pictures": (3, size, size), "condition": (1, 32, 32), "low_res": (3, 16, 16)}
    found = {
        name: torch.rand((BATCH, *shape), generator=generator)[place.start : place.stop] * 2 - 1
        for name, shape in shapes.items()
    }
    return Examples(found["pictures"], found["condition"], found["low_res"] if stage == "upsampler" else None)


def num_bytes(state: TrainingState) -> int:
    """What this worker holds of what is trained: weights, averages and moments."""
    moments = [value for entry in state.optimizer.state.values() for value in entry.values()]
    held = [*state.parameters(), *state.ema.averages.values(), *moments]
    return sum(mine(value).nbytes for value in held)


def step(config: Config, stage: Stage, workers: Workers, *, damaged: bool = False) -> dict[str, Any]:
    """Everything before and after a step, on the first worker; `damaged`: the last picture is not a number."""
    state = begun(config, stage, workers)
    share = examples(stage, workers.share(BATCH))
    if damaged and workers.rank == workers.world_size - 1:
        share.pictures[-1] = torch.nan
    before = state.snapshot()
    losses = accumulate_gradients(state, share)
    gradient = joined(whole(parameter.grad) for parameter in state.parameters() if parameter.grad is not None)
    learn(state, losses)
    after = state.snapshot()
    return {
        "gradient": gradient, "norm": losses.gradient_norm, "losses": losses.terms["loss"][losses.is_there],
        "moments": joined(entry["exp_avg"] for entry in after.trainer["optimizer"]["state"].values()),
        "before": joined(before.model.values()), "model": joined(after.model.values()),
        "average": joined(after.ema.values()), "num_bytes": num_bytes(state), "skipped": int(state.progress.skipped_steps),
    }  # fmt: skip


def joined(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def take_steps(rank: int, folder: Path, configs: dict[str, Any]) -> None:
    workers = Workers.current()
    parsed = {stage: Config.model_validate(config) for stage, config in configs.items()}
    found = {stage: step(parsed[stage], stage, workers) for stage in STAGES}
    found["damaged"] = step(parsed["upsampler"], "upsampler", workers, damaged=True)
    # By the backend that runs what was traced as it is.
    PITIModel.compile = partialmethod(PITIModel.compile, backend="eager")  # type: ignore[assignment]
    found["compiled"] = step(parsed["compiled"], "pretrain", workers)
    assert counters["stats"]["unique_graphs"] > 0
    torch.save(found, folder / f"{rank}.pt")


def test_a_step_of_two_workers_is_that_of_one(pipeline: Any, tmp_path: Path) -> None:
    """With microbatches, a padded share, losses of different weights and clipping; each worker holds a half. A number
    that is not finite, on one of the workers, stops the step on both. A compiled step is the same to the bit."""
    configs = {stage: pipeline.config(**options(stage, gradient_clip=1e-3, ema_rate=0.5)) for stage in STAGES}
    compiled = pipeline.config(**options("pretrain", gradient_clip=1e-3, ema_rate=0.5, compile=True))
    told = {name: config.model_dump(mode="json") for name, config in {**configs, "compiled": compiled}.items()}
    run_workers(take_steps, tmp_path, told)
    firsts, others = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for stage, config in configs.items():
        one, two, other = step(config, stage, Workers()), firsts[stage], others[stage]
        assert one["norm"] > 2e-3, f"{stage}: nothing is clipped"
        assert torch.equal(two["norm"], other["norm"])
        for name in ("gradient", "norm", "losses", "moments"):
            scale = float(one[name].abs().max())
            assert float((one[name] - two[name]).abs().max()) <= TOLERANCE * scale, f"{stage}: {name}"
        for name in ("model", "average"):  # Adam's first step is the gradient's sign: noise for biases before a norm
            moved = float((one[name] - one["before"]).abs().mean())
            assert moved > 0
            assert float((one[name] - two[name]).abs().mean()) < 0.02 * moved, f"{stage}: {name}"
        held = [two["num_bytes"], other["num_bytes"]]
        assert max(held) < 0.52 * one["num_bytes"], f"{stage}: {held} of {one['num_bytes']}"
        assert sum(held) < 1.01 * one["num_bytes"]
    assert firsts["damaged"]["skipped"] == others["damaged"]["skipped"] == 1
    assert torch.equal(firsts["damaged"]["model"], firsts["damaged"]["before"])
    for name, value in firsts["pretrain"].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(firsts["compiled"][name])), name


def train_twice(rank: int, folder: Path, runs: list[tuple[dict[str, Any], dict[str, Any], int]]) -> None:
    """Of each two runs one to its end, and one to a step, then anew from there."""
    for undisturbed, broken, stopped_at in runs:
        train(JobContext(JobSpec.model_validate(undisturbed)), Workers.current())
        go_on(broken, stopped_at)
        if rank == 0:
            shutil.copytree(broken["output"], f"{broken['output']}-alone")
        train(JobContext(JobSpec.model_validate(broken)), Workers.current())


@pytest.mark.parametrize(("strategy", "stopped_at"), [("ddp", 2), ("fsdp", 3)])
def test_runs_go_on_to_the_bit_and_also_undivided(
    pipeline: Any, tmp_path: Path, strategy: str, stopped_at: int
) -> None:
    """At the end of the first of two phases and in the second: bit for bit on as many workers, and with the same losses on
    one that holds everything, from the same checkpoint. With three, the order of a sum shows, unlike with two."""
    pipeline.finish("pretrain")
    phases = [{"steps": 2, "learning_rate": rate, "condition_dropout": 0.3} for rate in (1e-4, 2e-4)]

    def context(stage: Stage, kind: str) -> JobContext:
        told = options(stage, phases=phases) | {"cluster__strategy": strategy}
        found: JobContext = pipeline.context(stage, run=f"{stage}-{strategy}-{stopped_at}-{kind}", **told)
        return found

    pairs = {stage: (context(stage, "undisturbed"), context(stage, "broken")) for stage in STAGES[1:]}
    told = [(*(one.spec.model_dump(mode="json") for one in pair), stopped_at) for pair in pairs.values()]
    run_workers(train_twice, tmp_path, told, world_size=3)
    for stage, (undisturbed, broken) in pairs.items():
        expected, found = (everything(checkpoint_uri(one.spec.output, STEPS), one) for one in (undisturbed, broken))
        assert differences(expected, found) == [], stage
        assert losses_of(broken) == losses_of(undisturbed)
        alone = context(stage, "broken-alone")
        assert train(alone, Workers())["resumed_from_step"] == stopped_at
        records, others = (read_metrics(one.spec.output) for one in (undisturbed, alone))
        assert len(records) == len(others) > STEPS
        for one, other in zip(records, others, strict=True):
            for name in {"loss", "mse", "vb"} & one.keys():
                assert other[name] == pytest.approx(one[name], rel=TOLERANCE), f"{stage}, step {one['step']}: {name}"


def losses_of(run: JobContext) -> list[tuple[Any, ...]]:
    return [
        tuple(record.get(name) for name in ("step", "loss", "mse", "vb")) for record in read_metrics(run.spec.output)
    ]
