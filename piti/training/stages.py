"""The training stages: initial weights, inputs, and trained parameters of each.

pretrain   the whole base network from scratch, on a stand-in for GLIDE's semantics (`semantic_thumbnails`);
           only where no pretrained base is configured
stage1     the task encoder alone, in front of the frozen pretrained decoder
stage2     encoder and decoder together
upsampler  the second network, on degraded pictures
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from piti.checkpoints import final_checkpoint
from piti.config import Config, ModelConfig, ScheduleConfig, Stage, StageConfig
from piti.data.conditions import unit_range
from piti.data.resizing import base_pictures
from piti.diffusion import GaussianDiffusion
from piti.errors import ConfigError
from piti.models import PITIModel, build_model
from piti.models.checkpoints import load_model
from piti.models.pretrained import load_pretrained
from piti.seeds import seed_of
from piti.training.workers import sent

THUMBNAIL_SIZE = 8  # pixels a side: colours and rough layout, no edges
_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True)
class Examples:
    """What a network learns from: `pictures` (N, 3, S, S) at its own size, `condition` (N, C, Z, Z) and, for the
    upsampler, `low_res` (N, 3, s, s); all float32 in [-1, 1]. `places` are the N examples' rising positions within the
    worker's share of the batch; None: 0 to N - 1."""

    pictures: Tensor
    condition: Tensor
    low_res: Tensor | None
    places: Sequence[int] | None = None

    def slice(self, begin: int, end: int) -> Examples:
        """Examples number `begin` to `end` - 1, without their places."""
        low_res = None if self.low_res is None else self.low_res[begin:end]
        return Examples(self.pictures[begin:end], self.condition[begin:end], low_res)

    def spread(self, size: int) -> tuple[Examples, Tensor]:
        """`size` examples, each of these at its place and copies in the gaps; and (size,) bool on the device: no copy."""
        places = list(range(len(self.pictures)) if self.places is None else self.places)
        is_there = torch.zeros(size, dtype=torch.bool)
        is_there[places] = True
        is_there = sent(is_there, self.pictures.device)
        if places == list(range(size)):
            return self, is_there
        sources = [max(bisect_right(places, place) - 1, 0) for place in range(size)]
        index = sent(torch.tensor(sources), self.pictures.device)
        low_res = None if self.low_res is None else self.low_res[index]
        return Examples(self.pictures[index], self.condition[index], low_res), is_there


class TrainingStage:
    """One stage of one config. Raises ConfigError where the stage is not configured."""

    def __init__(self, name: Stage, config: Config) -> None:
        settings = config.stage(name)
        if settings is None:
            raise ConfigError(f"training.{name} is not configured", f"add a training.{name} section to the config")
        self.name = name
        self.config = config
        self.settings: StageConfig = settings
        self.is_upsampler = name == "upsampler"
        network = "upsampler" if self.is_upsampler else "base"
        self.model_config: ModelConfig = getattr(config.models, network)
        schedule: ScheduleConfig = getattr(config.diffusion, network)
        self.diffusion = GaussianDiffusion(schedule.schedule, schedule.steps, prediction=schedule.prediction)

    def examples(self, batch: Mapping[str, Any], device: torch.device) -> Examples:
        """This stage's inputs from a loader's batch, on `device`."""

        def moved(name: str) -> Tensor:
            return unit_range(sent(cast(Tensor, batch[name]), device))

        images = moved("image")
        if self.is_upsampler:
            return Examples(images, moved("condition"), moved("low_res"), batch.get("places"))
        if self.name == "pretrain":
            condition = semantic_thumbnails(
                images, self.model_config.condition_size, self.model_config.condition_channels
            )
        else:
            condition = moved("condition")
        return Examples(base_pictures(images, self.model_config.image_size), condition, None, batch.get("places"))

    def learnable(self, model: PITIModel) -> nn.Module:
        """The part of `model` that this stage trains. In stage 1 it is the encoder, as published.

        The published loop leaves the frozen decoder in training mode, so its dropout stays active; so does ours.
        """
        return model.encoder if self.name == "stage1" else model

    def initial_model(self, inputs: Mapping[str, str]) -> tuple[PITIModel, dict[str, Any]]:
        """The initial network of a fresh run, and the origin of its weights (JSON-able).

        `inputs` are the job's: the run folders `pretrain` and `stage1`. Raises CheckpointError.
        """
        seed = seed_of(self.config.seed, self.name, "weights")
        if self.name == "stage2":
            uri = final_checkpoint(inputs["stage1"])
            return load_model(uri, self.model_config), {"model": uri}
        model = build_model(self.model_config, seed=seed)
        if self.name == "stage1" and "pretrain" in inputs:
            uri = final_checkpoint(inputs["pretrain"])
            model.decoder.load_state_dict(load_model(uri, self.model_config).decoder.state_dict(), strict=True)
            return model, {"decoder": uri, "encoder": f"seed {seed}"}
        pretrained = self.config.pretrained
        ref = {"stage1": pretrained.base, "upsampler": pretrained.upsampler}.get(self.name)
        if ref is not None:
            return model, load_pretrained(model, ref, f"pretrained.{'upsampler' if self.is_upsampler else 'base'}")
        return model, {"model": f"seed {seed}"}


def semantic_thumbnails(images: Tensor, size: int, channels: int) -> Tensor:
    """A stand-in for the text semantics that GLIDE was pretrained with: what is roughly where, in which colours.

    Where no GLIDE checkpoint is given, there are no captions either. What PITI needs from pretraining is a decoder
    that draws from a condition in which neighbours look alike; an 8x8-pixel thumbnail of the picture itself is
    such a condition, and has nothing to do with the task's own. Stage 1 then has what it has with GLIDE: a decoder
    to keep, and a new encoder that must learn to reach its space from masks, sketches or geometry.

    images (N, 3, S, S) in [-1, 1] -> (N, channels, size, size) in [-1, 1]: average colours over 8x8 fields,
    enlarged bilinearly. 3 channels are RGB, 1 is luminance, 6 are RGB twice.
    """
    thumbnails = F.adaptive_avg_pool2d(images, THUMBNAIL_SIZE)
    if channels == 1:
        weights = torch.tensor(_LUMINANCE, device=images.device, dtype=images.dtype)
        thumbnails = (thumbnails * weights[:, None, None]).sum(dim=1, keepdim=True)
    elif channels == 6:
        thumbnails = thumbnails.repeat(1, 2, 1, 1)
    elif channels != 3:
        raise ConfigError(f"pretraining has no stand-in condition of {channels} channels", "use 1, 3 or 6")
    return F.interpolate(thumbnails, size=(size, size), mode="bilinear", align_corners=False)
