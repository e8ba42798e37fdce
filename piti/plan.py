"""The steps of a config: each step's inputs, output folder and fingerprint.

`piti.evaluation.evaluation_plan` has the steps of an evaluation.

A fingerprint is the sha256 of the part of the config that can change the step's output, of its inputs' fingerprints,
and of the step's format version. A step whose output exists under its fingerprint is skipped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, cast

from pydantic import BaseModel

from piti import storage
from piti.config import Config, Stage, StageConfig, WeightsRef
from piti.data.sources import open_source
from piti.errors import DataError
from piti.provenance import FORMAT_VERSIONS
from piti.weights import weights_digest

JobKind = Literal["shard", "degrade", "train", "sample", "score", "report", "study"]

# Settings that change how fast, how often or where a stage runs, but not what it learns.
_OPERATIONAL_STAGE_KEYS = {
    "microbatch_size", "validate_every_steps", "sample_every_steps", "checkpoint_every_steps", "keep_checkpoints",
    "keep_every_steps", "log_every_steps", "compile",
}  # fmt: skip
OPERATIONAL_MODEL_KEYS = {"activation_checkpointing"}
_TRAINING_DATA_KEYS = {"horizontal_flip", "max_samples", "max_rejected_share"}  # no effect on validation pictures


@dataclass(frozen=True)
class Step:
    """A unit of work that one Ray job does. `inputs` maps a role to the URI of a folder, checkpoint or file."""

    name: str
    kind: JobKind
    fingerprint: str
    output: str
    inputs: dict[str, str] = field(default_factory=dict)

    @property
    def marker(self) -> str:
        """URI of the result file. The step is finished if it exists."""
        return storage.join(self.output, storage.MARKER)

    def result(self) -> dict[str, Any] | None:
        """The step's result, or None if it is not done."""
        try:
            return cast(dict[str, Any], storage.read_json(self.marker))
        except FileNotFoundError:
            return None

    def require_result(self) -> dict[str, Any]:
        """The step's result. Raises DataError if the step is not finished."""
        result = self.result()
        if result is None:
            raise DataError(
                f"{self.name} is not done: {self.marker} does not exist", "run the steps before this one first"
            )
        return result


def fingerprint(value: Mapping[str, Any]) -> str:
    """Hex sha256 of a JSON-able mapping, independent of key order."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return storage.sha256_bytes(canonical.encode("utf-8"))


def dump(section: BaseModel, exclude: set[str] | None = None) -> dict[str, Any]:
    """A section of the config, JSON-able, for fingerprints."""
    return section.model_dump(mode="json", exclude=exclude)


def _weights(ref: WeightsRef | None) -> dict[str, Any] | None:
    return None if ref is None else dump(ref)


class Plan:
    """The steps of a config. Cheap to build: the dataset is listed when `shard` is first asked for."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def step(self, name: str, kind: JobKind, folder: str, content: Mapping[str, Any], inputs: dict[str, str]) -> Step:
        """A step whose output, in `<root>/<folder>`, depends on `content` (JSON-able) alone."""
        print_ = fingerprint({"kind": kind, "name": name, "version": FORMAT_VERSIONS[kind], **content})
        return Step(name, kind, print_, storage.join(self.config.root, folder, print_[:16]), inputs)

    def _data(self, exclude: set[str] | None = None) -> dict[str, Any]:
        """How a dataset is read; the sketches' detector by its content."""
        data = self.config.data
        is_pinned = data.sketch.weights is None or data.sketch.weights.sha256 is not None
        detector = {} if is_pinned else {"detector": weights_digest(data.sketch.weights)}
        return {"data": dump(data, exclude=exclude), **detector}

    @cached_property
    def shard(self) -> Step:
        source = open_source(self.config.data)
        content = {**self._data(), "source": source.fingerprint(), "seed": self.config.seed}
        return self.step("shard", "shard", "shards", content, {})

    @cached_property
    def validation(self) -> Step:
        """The validation split alone: all that evaluation reads of a dataset."""
        content = {
            **self._data(exclude=_TRAINING_DATA_KEYS),
            "source": open_source(self.config.data).fingerprint(["validation"]),
        }
        return self.step("validation", "shard", "shards", content, {})

    @property
    def conditions(self) -> Step:
        """The shards that evaluation reads: the whole dataset's if they exist, else the validation split's.

        Both hold the same validation pictures.
        """
        try:
            shard = self.shard
        except DataError:  # the training data is missing
            return self.validation
        return self.validation if shard.result() is None else shard

    @cached_property
    def degrade(self) -> Step | None:
        """None where pictures are degraded as they are read (degradation.variants 0)."""
        if self.config.degradation.variants == 0:
            return None
        content = {
            "degradation": dump(self.config.degradation),
            "scale": self.config.scale,
            "seed": self.config.seed,
            "shards": self.shard.fingerprint,
        }
        return self.step("degrade", "degrade", "degraded", content, {"shards": self.shard.output})

    def _train(self, stage: Stage, init: dict[str, Any], inputs: dict[str, str]) -> Step:
        config = self.config
        network: Literal["base", "upsampler"] = "upsampler" if stage == "upsampler" else "base"
        content = {
            "stage": dump(cast(StageConfig, config.stage(stage)), exclude=_OPERATIONAL_STAGE_KEYS),
            "model": dump(getattr(config.models, network), exclude=OPERATIONAL_MODEL_KEYS),
            "diffusion": dump(getattr(config.diffusion, network)),
            "seed": config.seed,
            "flip": config.data.horizontal_flip,
            "init": init,
            "shards": self.shard.fingerprint,
        }
        if stage == "upsampler":
            online = {"degradation": dump(config.degradation), "scale": config.scale}
            content["degraded"] = online if self.degrade is None else self.degrade.fingerprint
        return self.step(stage, "train", "runs", content, {"shards": self.shard.output, **inputs})

    @cached_property
    def pretrain(self) -> Step | None:
        """None if the config has a pretrained base or trains from scratch."""
        if self.config.pretrained.base is not None or self.config.pretrained.from_scratch:
            return None
        return self._train("pretrain", {}, {})

    @cached_property
    def stage1(self) -> Step:
        if self.pretrain is not None:
            return self._train("stage1", {"pretrain": self.pretrain.fingerprint}, {"pretrain": self.pretrain.output})
        return self._train("stage1", {"weights": _weights(self.config.pretrained.base)}, {})

    @cached_property
    def stage2(self) -> Step:
        return self._train("stage2", {"stage1": self.stage1.fingerprint}, {"stage1": self.stage1.output})

    @cached_property
    def upsampler(self) -> Step:
        init = {"weights": _weights(self.config.pretrained.upsampler)}
        return self._train("upsampler", init, {} if self.degrade is None else {"degraded": self.degrade.output})

    def train(self, stage: Stage) -> Step | None:
        """The step of a training stage."""
        step: Step | None = getattr(self, stage)
        return step

    @property
    def training(self) -> list[Step]:
        """All training steps in order."""
        return [step for step in (self.pretrain, self.stage1, self.stage2, self.upsampler) if step is not None]

    @property
    def goal(self) -> str:
        """Hex sha256 that runs share which train the same networks from the same data, and no others."""
        return fingerprint({step.name: step.fingerprint for step in self.training})

    @property
    def preparation(self) -> list[Step]:
        return [step for step in (self.shard, self.degrade) if step is not None]
