"""Pictures from a user's conditions: finding the networks, reading a condition, and drawing.

`piti translate` and `piti try` share it. A condition becomes what the task encoder sees by the steps that shards and loader take.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from piti import storage
from piti.checkpoints import Checkpoint, checkpoints_of, newest_whole_checkpoint
from piti.config import Config, DataConfig, Sampler, SamplingConfig
from piti.data.conditions import StoredCondition, check_labels, encode_condition, paint_condition, unit_range
from piti.data.items import RawCondition, RejectedItem
from piti.data.resizing import shrink_condition
from piti.data.sources import measurements
from piti.data.sources.pictures import decode_sketch
from piti.errors import CheckpointError, ConfigError, DataError, PitiError, first_line
from piti.evaluation.cascade import Order, draw_base, draw_upsampled, ready_to_draw, to_uint8
from piti.evaluation.targets import Network, trained_config
from piti.models import PITIModel
from piti.models.checkpoints import load_model
from piti.plan import Plan

_RESPACING = {"ddpm": "{}", "ddim": "logsnr{}", "dpm++": "logsnr{}", "unipc": "logsnr{}"}


@dataclass(frozen=True)
class Networks:
    """A config, and the URIs of the base and upsampler checkpoints that draw with its sizes."""

    config: Config
    base: str
    upsampler: str


@dataclass(frozen=True)
class Wish:
    """Options for drawing a condition. None: the config's value. Sample number i of a seed is the same in any number of
    samples."""

    samples: int = 1
    seed: int = 0
    guidance: float | None = None
    sampler: Sampler | None = None
    steps: int | None = None

    def sampling(self, configured: SamplingConfig) -> SamplingConfig:
        """The config's sampling with this wish. Raises ConfigError where the parts do not go together."""
        told = configured.model_dump()
        if self.guidance is not None:
            told["guidance_scale"] = self.guidance
        sampler = self.sampler or configured.base_sampler
        if self.steps is not None:
            told |= {"base_sampler": sampler, "base_respacing": _RESPACING[sampler].format(self.steps)}
        elif sampler != configured.base_sampler:
            raise ConfigError(f"sampler {sampler} without a number of steps", "give both")
        try:
            return SamplingConfig.model_validate(told)
        except ValidationError as error:
            raise ConfigError("; ".join(str(detail["msg"]) for detail in error.errors())) from error


def find_networks(checkpoint: str | None, upsampler: str | None = None, config: Config | None = None) -> Networks:
    """Which networks draw.

    `checkpoint`: a base checkpoint, or a training run, whose newest one counts; None: the newest of `config`'s stage 2.
    `config` None: the one that the checkpoint was trained with, which the jobs beside its run tell. `upsampler` None: the newest
    of the same config. Raises CheckpointError or ConfigError that says what to give.
    """
    if checkpoint is None:
        if config is None:
            raise CheckpointError("no checkpoint and no config", "give one of them")
        checkpoint = Plan(config).stage2.output
        if not checkpoints_of(checkpoint):
            raise CheckpointError(
                f"config {config.name} has no stage 2 checkpoint (looked in {checkpoint})",
                f"run `piti run full-train --config {config.name}` first, or name a checkpoint",
            )
    base = _checkpoint(checkpoint)
    if base.stage == "upsampler":
        raise CheckpointError(f"{base.uri} is an upsampler's checkpoint", "give the base's, and this as --upsampler")
    config = config or trained_config(Network.at(base.uri))
    if config is None:
        raise CheckpointError(f"nothing beside {base.uri} says which config it was trained with", "give --config")
    if upsampler is not None:
        return Networks(config, base.uri, _checkpoint(upsampler).uri)
    try:
        run = Plan(config).upsampler.output
    except PitiError as error:
        raise CheckpointError(
            f"cannot tell which upsampler belongs to it: {first_line(error)}", "give --upsampler"
        ) from error
    if not checkpoints_of(run):
        raise CheckpointError(f"there is no upsampler checkpoint of {config.name} in {run}", "give --upsampler")
    return Networks(config, base.uri, _checkpoint(run).uri)


def _checkpoint(uri: str) -> Checkpoint:
    """The checkpoint at `uri`, or the newest whole one of a run there. Raises CheckpointError."""
    uri = storage.absolute(uri)
    return Checkpoint.at((newest_whole_checkpoint(uri) if checkpoints_of(uri) else None) or uri)


def read_condition(path: str, data: DataConfig) -> NDArray[np.uint8]:
    """A condition file as the task encoder sees it: uint8 (C, S, S), S = `data.image_size`.

    Label maps hold the labels' numbers; sketches light or dark lines; depth is in metres, or whole numbers of
    `depth_unit_metres`. Other sizes are fitted as `data.geometry` says (`random`: the central square).
    Raises DataError where the file is missing or is no such condition.
    """
    try:
        return paint(_raw_condition(storage.read_bytes(path), data), data)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError(f"there is no file {path}") from error
    except RejectedItem as reason:
        raise DataError(f"{path} is no {data.modality} condition: {reason}") from reason


def _raw_condition(content: bytes, data: DataConfig) -> RawCondition:
    if data.modality == "mask":
        return RawCondition(measurements.labels(content))
    if data.modality == "sketch":
        return RawCondition(decode_sketch(content, data.sketch.invert)[0])
    return RawCondition(measurements.depth(content, getattr(data.source, "depth_unit_metres", 0.001)))


def paint(raw: RawCondition, data: DataConfig) -> NDArray[np.uint8]:
    """As `read_condition`, from values. Raises RejectedItem for labels that the config does not have."""
    if data.modality == "mask":
        check_labels(raw.values, data.num_classes or 0)
    geometry = "center" if data.geometry == "random" else data.geometry
    raw = shrink_condition(raw, data.modality, geometry, data.image_size, raw.values.shape)
    stored: StoredCondition = encode_condition(raw, data.modality)
    return paint_condition(stored, data.modality, data.num_classes)


class Translator:
    """Draws with a base and an upsampler that stay loaded. Raises CheckpointError where they do not fit the config."""

    def __init__(self, networks: Networks) -> None:
        self.networks = networks
        self.config = networks.config
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._base = self._load(networks.base, "base")
        self._upsampler = self._load(networks.upsampler, "upsampler")

    def _load(self, uri: str, network: Literal["base", "upsampler"]) -> PITIModel:
        return ready_to_draw(load_model(uri, getattr(self.config.models, network)), self.config, self._device)

    def draw(self, painted: NDArray[np.uint8], wish: Wish) -> Iterator[NDArray[np.uint8]]:
        """Pictures uint8 (S, S, 3) from one condition (C, S, S) as `read_condition` gives it; a batch is drawn at a time.

        Sample i begins from the noise of (seed, i) alone.
        """
        sampling = wish.sampling(self.config.sampling)
        config = self.config.model_copy(update={"seed": wish.seed, "sampling": sampling})
        condition = unit_range(torch.from_numpy(painted))
        orders = [Order("translate", variant, condition) for variant in range(wish.samples)]
        for first in range(0, len(orders), sampling.batch_size):
            batch = orders[first : first + sampling.batch_size]
            yield from to_uint8(draw_upsampled(self._upsampler, batch, draw_base(self._base, batch, config), config))


def picture_names(condition: str, wish: Wish, folder: str) -> list[Path]:
    """Where `piti translate` writes: `<condition>-<seed>-<number>.png`. Raises DataError where one is there already."""
    paths = [Path(folder) / f"{Path(condition).stem}-{wish.seed}-{number}.png" for number in range(wish.samples)]
    for path in paths:
        if path.exists():
            raise DataError(f"{path} exists already", "give another --out or --seed")
    return paths
