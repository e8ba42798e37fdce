"""A pipeline small enough for unit tests: real shards of photographs, networks of a few thousand parameters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from piti import storage
from piti.config import Config
from piti.config.presets import load_config
from piti.data.sharding import shard_dataset
from piti.evaluation.picture_sets import PICTURES, SET_NAMES, PictureSetName
from piti.job import JobSpec
from piti.models import ModelConfig, build_model
from piti.models.checkpoints import write_checkpoint
from piti.plan import JobKind

_NETWORK = {
    "model_channels": 32, "channel_mult": [1, 2], "num_res_blocks": 1, "attention_resolutions": [8],
    "num_head_channels": 32, "encoder_width": 32, "encoder_layers": 1, "encoder_heads": 2,
}  # fmt: skip
OVERRIDES = {
    "data.source": {"kind": "bundled", "train_crops": 4, "validation_crops": 7},
    "data.image_size": 32,
    "models.base": {**_NETWORK, "image_size": 16, "condition_channels": 1, "condition_size": 32},
    "models.upsampler": {
        **_NETWORK, "image_size": 32, "super_resolution": True, "condition_channels": 1, "condition_size": 32,
    },
    "sampling.base_sampler": "dpm++",
    "sampling.base_respacing": "3",
    "sampling.guidance_scale": 1.5,
    "sampling.upsampler_respacing": "2",
    "sampling.num_samples": 6,
    "sampling.batch_size": 4,
    "sampling.diversity_conditions": 3,
    "sampling.diversity_samples": 2,
    "sampling.upsampled_conditions": 4,
    "evaluation.grid_samples": 3,
}  # fmt: skip


def write_small_checkpoint(
    folder: str, config: ModelConfig, seed: int, stage: str, step: int, origin: dict[str, str] | None = None
) -> str:
    """A checkpoint folder whose network answers (a fresh one gives only zeros)."""
    model = build_model(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    state = model.state_dict()
    uri = storage.join(folder, f"step-{step:08d}")
    write_checkpoint(
        Path(uri), model=state, ema=state, trainer={}, about={"stage": stage, "step": step, "origin": origin}
    )
    return uri


@pytest.fixture(scope="session")
def small_config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    root = tmp_path_factory.mktemp("small-pipeline")
    return load_config("demo-sketch", {**OVERRIDES, "root": str(root)})


@pytest.fixture(scope="session")
def small_inputs(small_config: Config) -> dict[str, str]:
    """The inputs of sample and score: shards and three checkpoints."""
    config = small_config
    inputs = {"shards": shard_dataset(config.data, storage.join(config.root, "shards"), config.seed).uri}
    before = ""
    for number, stage in enumerate(("pretrain", "stage1", "stage2", "upsampler")):
        run = storage.join(config.root, "runs", stage)
        model = config.models.upsampler if stage == "upsampler" else config.models.base
        origin = {"stage1": {"decoder": before}, "stage2": {"model": before}}.get(stage, {"model": "seed 1"})
        checkpoint = before = write_small_checkpoint(run, model, number, stage, 20, origin)
        losses = {"mse": 0.5, "vb": 0.1, "loss": 0.6}, {"mse": 0.2, "vb": 0.1, "loss": 0.3}
        records = [
            {"step": 0, "time": 0.0, "split": "validation", **losses[0]},
            {"step": 10, "time": 1.0, "split": "train", "loss": 0.4},
            {"step": 20, "time": 2.0, "split": "validation", **losses[1]},
        ]
        text = "".join(f"{json.dumps(record)}\n" for record in records)
        storage.write_bytes(storage.join(run, "metrics.jsonl"), text.encode())
        storage.write_json(
            storage.join(run, storage.MARKER),
            {
                "checkpoint": checkpoint,
                "initial_validation": losses[0],
                "final_validation": losses[1],
                "wall_seconds": 12.5,
            },
        )
        role = {"stage1": "stage1", "stage2": "checkpoint", "upsampler": "upsampler"}.get(stage)
        inputs |= {role: checkpoint} if role is not None else {}
    return inputs


def with_pictures(inputs: dict[str, str], folder: str, *sets: PictureSetName) -> dict[str, str]:
    """A job's inputs with a folder for each of these picture sets (default: all), below `folder`."""
    return inputs | {f"{PICTURES}{name}": storage.join(folder, name) for name in sets or SET_NAMES}


@pytest.fixture
def job_spec(small_config: Config, small_inputs: dict[str, str], tmp_path: Path) -> Callable[..., JobSpec]:
    """A spec for a job whose output and messages lie in this test's folder."""

    def make(kind: JobKind, config: Config | None = None, **more_inputs: str) -> JobSpec:
        return JobSpec(
            kind=kind, name=kind, fingerprint=storage.sha256_bytes(str(tmp_path).encode()), output=str(tmp_path / kind),
            inputs=small_inputs | more_inputs, folder=str(tmp_path / "job"), config=config or small_config,
        )  # fmt: skip

    return make
