"""A pipeline small enough to train in a second: real photographs as 32x32 shards, with their degraded companions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from piti import storage
from piti.config import Config
from piti.config.presets import load_config
from piti.data.publishing import write_manifest
from piti.data.sharding import shard_dataset
from piti.job import SPEC_FILE, JobContext, JobSpec
from piti.jobs.degrade import degrade_shard
from piti.plan import Plan
from piti.training.loop import train
from piti.training.workers import Workers

STAGES = ("pretrain", "stage1", "stage2", "upsampler")

SMALL: dict[str, Any] = {
    "data.source.train_crops": 12,
    "data.source.validation_crops": 4,
    "data.samples_per_shard": 8,
    "data.image_size": 32,
    "degradation.variants": 2,
    "models.base.image_size": 16,
    "models.base.model_channels": 32,
    "models.base.channel_mult": [1, 1],
    "models.base.attention_resolutions": [8],
    "models.base.condition_size": 32,
    "models.base.encoder_width": 32,
    "models.base.encoder_layers": 1,
    "models.base.encoder_heads": 2,
    "models.base.dropout": 0.1,
    "models.upsampler.image_size": 32,
    "models.upsampler.channel_mult": [1, 1],
    "models.upsampler.attention_resolutions": [],
    "models.upsampler.condition_size": 32,
    "models.upsampler.encoder_width": 32,
    "models.upsampler.encoder_layers": 1,
    "models.upsampler.encoder_heads": 2,
    "training.upsampler.picture_losses_from_step": 1,
    "training.upsampler.discriminator_channels": 8,
    "training.upsampler.discriminator_layers": 2,
}
for _stage in STAGES:
    SMALL |= {
        f"training.{_stage}.phases": [{"steps": 6, "learning_rate": 2e-3, "condition_dropout": 0.3}],
        f"training.{_stage}.batch_size": 4,
        f"training.{_stage}.validation_samples": 4,
        f"training.{_stage}.validate_every_steps": 3,
        f"training.{_stage}.checkpoint_every_steps": 2,
        f"training.{_stage}.keep_checkpoints": 2,
        f"training.{_stage}.log_every_steps": 1,
    }


class Pipeline:
    """Stages by name, on shards made once. `root` differs from test to test, the shards do not. `shared`: where
    pretraining and stage 1 are finished, unless a test wants others; None: here."""

    def __init__(self, shards: str, degraded: str, root: Path, shared: Pipeline | None = None) -> None:
        self._shards, self._degraded, self._root, self._shared = shards, degraded, root, shared
        self.finished: dict[str, dict[str, Any]] = {}

    def config(self, **overrides: Any) -> Config:
        """The small config; dots in `overrides` are written as two underscores."""
        more = {key.replace("__", "."): value for key, value in overrides.items()}
        return load_config("demo-sketch", {"root": str(self._root), **SMALL, **more})

    def context(self, stage: str, run: str | None = None, **overrides: Any) -> JobContext:
        """What a job of `stage` is told; `run` names the folder, for more than one run of the same."""
        config = self.config(**overrides)
        step = getattr(Plan(config), stage)
        inputs = {**step.inputs, "shards": self._shards}
        if stage == "upsampler":
            inputs["degraded"] = self._degraded
        output = str(self._root / "runs" / (run or stage))
        for name in {"pretrain", "stage1"} & inputs.keys():
            done = self.finished.get(name)
            inputs[name] = done["checkpoint"].rpartition("/")[0] if done else str(self._root / "runs" / name)
        spec = JobSpec(
            kind="train", name=stage, fingerprint=step.fingerprint, output=output, inputs=inputs,
            folder=str(self._root / "jobs" / (run or stage)), config=config,
        )  # fmt: skip
        storage.write_json(storage.join(spec.folder, SPEC_FILE), spec.model_dump(mode="json"))
        return JobContext(spec)

    def finish(self, stage: str, **overrides: Any) -> dict[str, Any]:
        """Train a stage to its end, those before it first, and leave its result as a job does. What others need is
        trained once for all tests: change nothing in its folder."""
        before = {"stage1": "pretrain", "stage2": "stage1"}.get(stage)
        if before is not None and before not in self.finished:
            self.finish(before)
        if self._shared is not None and stage in ("pretrain", "stage1") and not overrides:
            if stage not in self._shared.finished:
                self._shared.finish(stage)
            self.finished[stage] = self._shared.finished[stage]
            return self.finished[stage]
        context = self.context(stage, **overrides)
        result = self.finished[stage] = train(context, Workers())
        storage.write_json(storage.join(context.spec.output, storage.MARKER), result)
        return result


@pytest.fixture(scope="session")
def small_shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """URIs of shards and of their degraded companions."""
    folder = tmp_path_factory.mktemp("small")
    shards, degraded = str(folder / "shards"), str(folder / "degraded")
    config = load_config("demo-sketch", {"root": str(folder), **SMALL})
    names = list(shard_dataset(config.data, shards, config.seed).stats)
    for name in names:
        degrade_shard(shards, name, degraded, "test", config.data, config.degradation, config.scale, config.seed)
    write_manifest(degraded, names, {"scale": config.scale})
    return shards, degraded


@pytest.fixture(scope="session")
def first_stages(small_shards: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline(*small_shards, tmp_path_factory.mktemp("first-stages"))


@pytest.fixture
def pipeline(small_shards: tuple[str, str], first_stages: Pipeline, tmp_path: Path) -> Pipeline:
    return Pipeline(*small_shards, tmp_path, first_stages)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So that sums are always taken in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
