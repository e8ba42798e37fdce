"""The shipped prior follows the demo's conditions before any training: photographs that it has never seen, as label maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from eval.retrieval import truth_ranks
from piti import storage
from piti.config import Config
from piti.config.presets import load_config
from piti.data.examples import ExampleReader
from piti.data.sharding import shard_dataset
from piti.evaluation.cascade import Order, draw_base, to_uint8
from piti.models import PITIModel
from piti.training.stages import Examples, TrainingStage

NUM_PICTURES = 48


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    source = {"kind": "bundled", "train_crops": 1, "validation_crops": NUM_PICTURES}
    return load_config("demo", {"root": str(tmp_path_factory.mktemp("prior")), "data.source": source})


@pytest.fixture(scope="module")
def prior(config: Config) -> PITIModel:
    model, origin = TrainingStage("stage1", config).initial_model({})
    assert origin["loaded"] == "model"
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def examples(config: Config) -> Examples:
    """The demo's first validation pictures at the base's size and their conditions, read from shards."""
    shards = f"{config.root}/shards"
    shard_dataset(config.data, shards, config.seed)
    reader = ExampleReader(shards, "validation", config.data, None, config.scale)
    read = [reader.example(number, None) for number in range(NUM_PICTURES)]
    batch = {name: torch.stack([getattr(example, name) for example in read]) for name in ("image", "condition")}
    return TrainingStage("stage1", config).examples(batch, torch.device("cpu"))


def test_a_drawn_picture_finds_its_own_truth(config: Config, prior: PITIModel, examples: Examples) -> None:
    """Five of 48 are 10 %, so chance is 0.10, and 0.25 is three standard deviations above it."""
    orders = [Order(str(number), 0, condition) for number, condition in enumerate(examples.condition)]
    drawn, truths = (np.stack(to_uint8(found)) for found in (draw_base(prior, orders, config), examples.pictures))
    assert (truth_ranks(drawn, truths) < 5).mean() >= 0.6
    shuffled = truths[np.random.default_rng(0).permutation(NUM_PICTURES)]
    assert (truth_ranks(drawn, shuffled) < 5).mean() <= 0.25


@pytest.mark.parametrize("timestep", [100, 500, 900])
def test_the_right_condition_lowers_the_loss_at_every_noise_level(
    config: Config, prior: PITIModel, examples: Examples, timestep: int
) -> None:
    diffusion = TrainingStage("stage1", config).diffusion
    noise = torch.randn(examples.pictures.shape, generator=torch.Generator().manual_seed(timestep))
    t = torch.full((NUM_PICTURES,), timestep)
    right, other = (
        diffusion.training_losses(
            lambda x_t, time, given=given: prior(x_t, time, condition=given), examples.pictures, t, noise
        )["mse"].mean()
        for given in (examples.condition, examples.condition.roll(1, 0))
    )
    assert right < 0.8 * other


def test_the_card_names_the_shipped_files() -> None:

    card = (storage.ASSETS / "README.md").read_text()
    for path in sorted(Path(storage.ASSETS).glob("*.safetensors")):
        assert storage.sha256_file(str(path)) in card, path.name
