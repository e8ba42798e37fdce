"""The critic takes one step an optimizer step, however a batch is divided into microbatches and over workers."""

from __future__ import annotations

from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from piti.config import Config
from piti.models import PITIModel
from piti.training.gradients import accumulate_gradients
from piti.training.loop import train
from piti.training.metrics import read_metrics
from piti.training.stages import Examples, TrainingStage
from piti.training.state import TrainingState
from piti.training.workers import Workers
from tests.worker_processes import run_workers

TOLERANCE = 1e-5  # of the largest value
BATCH = 4


def config_of(pipeline: Any, microbatch_size: int | None) -> Config:
    options = {"microbatch_size": microbatch_size, "picture_losses_from_step": 0, "batch_size": BATCH}
    # A weight and a rate at which the critic and its step show in the gradient.
    options |= {"adversarial_weight": 1.0, "discriminator_learning_rate": 1e-3}
    config: Config = pipeline.config(**{f"training__upsampler__{name}": value for name, value in options.items()})
    return config


def examples() -> Examples:
    generator = torch.Generator().manual_seed(3)
    shapes = {"pictures": (BATCH, 3, 32, 32), "condition": (BATCH, 1, 32, 32), "low_res": (BATCH, 3, 16, 16)}
    return Examples(**{name: torch.rand(shape, generator=generator) * 2 - 1 for name, shape in shapes.items()})


def step(config: Config, mine: Examples, workers: Workers) -> dict[str, Tensor]:
    """The gradient of the upsampler, and the critic after its step."""
    torch.set_num_threads(1)
    state = TrainingState.fresh(TrainingStage("upsampler", config), {}, workers)
    # A fresh network predicts no noise whatever it sees.
    torch.nn.init.normal_(state.model.decoder.out[2].weight, std=0.05, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    accumulate_gradients(state, mine)
    assert state.picture_losses is not None
    saved = state.picture_losses.state_dict()
    steps = {float(entry["step"]) for entry in saved["optimizer"]["state"].values()}
    assert steps == {1.0}, "the critic took another number of steps"
    gradients = [parameter.grad.flatten() for parameter in state.parameters() if parameter.grad is not None]
    critic = [value.flatten() for value in saved["critic"].values()]
    moments = [entry["exp_avg"].flatten() for entry in saved["optimizer"]["state"].values()]
    return {"gradient": torch.cat(gradients), "critic": torch.cat(critic), "moments": torch.cat(moments)}


def assert_agree(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for name in ("gradient", "moments"):
        scale = float(other[name].abs().max())
        assert scale > 1e-4, f"{name}: nothing is proved"
        assert float((one[name] - other[name]).abs().max()) <= TOLERANCE * scale, name
    # Adam's first step is the gradient's sign, which rounding turns where it is next to zero.
    assert (one["critic"] - other["critic"]).abs().mean() < 1e-5


@pytest.mark.parametrize("microbatch_size", [2, 1, 3])
def test_microbatches_change_rounding_only(pipeline: Any, microbatch_size: int) -> None:
    whole = step(config_of(pipeline, None), examples(), Workers())
    assert_agree(step(config_of(pipeline, microbatch_size), examples(), Workers()), whole)


def test_padded_pictures_weigh_nothing(pipeline: Any) -> None:
    """Three pictures of four, in microbatches of one: the critic's gradient is theirs, divided by four."""
    present = examples().slice(0, 3)
    whole = step(config_of(pipeline, None), present, Workers())
    assert_agree(step(config_of(pipeline, 1), present, Workers()), whole)
    other = examples().slice(0, 4)
    assert not torch.allclose(step(config_of(pipeline, None), other, Workers())["moments"], whole["moments"])
    changed = Examples(other.pictures.clone(), other.condition, other.low_res)
    changed.pictures[3] = changed.pictures[2]  # what would fill the gap, with a weight
    assert not torch.allclose(step(config_of(pipeline, None), changed, Workers())["moments"], whole["moments"])


def test_first_picture_losses_are_means_over_the_steps_that_had_them(pipeline: Any) -> None:
    """They begin at step 2 of a report's four: the report's mean is that of two steps, of the other losses that of four."""
    options = {"picture_losses_from_step": 2, "log_every_steps": 4, "checkpoint_every_steps": 100}
    every = options | {"log_every_steps": 1}
    found = []
    for run, chosen in (("four", options), ("every", every)):
        told = {f"training__upsampler__{name}": value for name, value in chosen.items()}
        context = pipeline.context("upsampler", run=run, **told)
        train(context, Workers())
        found.append([record for record in read_metrics(context.spec.output) if record["split"] == "train"])
    (first, *_), steps = found
    for name in ("loss", "mse", "gradient_norm", "perceptual", "adversarial"):
        seen = [record[name] for record in steps[:4] if name in record]
        assert len(seen) == (2 if name in ("perceptual", "adversarial") else 4)
        assert first[name] == pytest.approx(sum(seen) / len(seen), rel=1e-9), name


def work_compiled(rank: int, folder: Path, config: dict[str, Any]) -> None:
    """Through torch.compile's tracing of a network that DistributedDataParallel wraps, with the backend that runs it as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PITIModel, "compile", partialmethod(PITIModel.compile, backend="eager"))
        counters.clear()
        work(rank, folder, config)
        assert counters["stats"]["unique_graphs"] > 0, "nothing was compiled"


def test_compiled_workers_change_rounding_only(pipeline: Any, tmp_path: Path) -> None:
    whole = step(config_of(pipeline, None), examples(), Workers())
    config = config_of(pipeline, None).model_dump(mode="json")
    config["training"]["upsampler"]["compile"] = True
    run_workers(work_compiled, tmp_path, config)
    for rank in range(2):
        assert_agree(torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True), whole)


def work(rank: int, folder: Path, config: dict[str, Any]) -> None:
    workers = Workers.current()
    share = workers.share(BATCH)
    mine = examples().slice(share.start, share.stop)
    torch.save(step(Config.model_validate(config), mine, workers), folder / f"rank-{rank}.pt")


def test_workers_change_rounding_only(pipeline: Any, tmp_path: Path) -> None:
    """The batch of 4 does not divide by their number: shares of 1, 1 and 2 pictures, in microbatches of one."""
    whole = step(config_of(pipeline, None), examples(), Workers())
    run_workers(work, tmp_path, config_of(pipeline, 1).model_dump(mode="json"), world_size=3)
    for rank in range(3):
        assert_agree(torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True), whole)
