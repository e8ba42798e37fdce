"""Pictures of the same validation conditions, drawn now and then during training to show its progress."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval.grid import PictureGrid, grid_png
from piti.data.conditions import condition_picture, levels
from piti.data.examples import ExampleReader
from piti.data.loader import validation_batches
from piti.data.resizing import base_pictures
from piti.diffusion import GaussianDiffusion, guided
from piti.job import JobContext
from piti.models import PITIModel
from piti.training.randomness import normal_pictures
from piti.training.stages import Examples
from piti.training.state import TrainingState
from piti.training.workers import autocast

NUM_SAMPLES = 4
NUM_STEPS = 15  # enough for UniPC (docs/performance.md)


class Samples:
    """The first few pictures of the validation split: condition, what the network draws, truth.

    Noise is a function of (seed, key), so pictures of different steps differ by what was learned. The upsampler begins
    from the truth at the base network's size.
    """

    def __init__(self, context: JobContext, state: TrainingState) -> None:
        self._config = context.config
        shards, config = context.spec.inputs["shards"], context.config
        self._examples = ExampleReader(shards, "validation", config.data, None, config.scale)
        self._stage = state.stage
        self._device = state.workers.device
        schedule = self._config.diffusion.upsampler if state.stage.is_upsampler else self._config.diffusion.base
        respacing = f"logsnr{min(NUM_STEPS, schedule.steps)}"
        self._diffusion = GaussianDiffusion(
            schedule.schedule, schedule.steps, respacing, prediction=schedule.prediction
        )

    @torch.no_grad()
    def draw(self, model: PITIModel) -> bytes | None:
        """A PNG with a row a condition; None where all of them are damaged. `model` is in evaluation mode."""
        config = self._config
        batch = next(validation_batches(self._examples, batch_size=NUM_SAMPLES, limit=NUM_SAMPLES), None)
        if batch is None:
            return None
        images = batch["image"]
        if self._stage.is_upsampler:
            batch["low_res"] = levels(base_pictures(images / 127.5 - 1, config.models.base.image_size))
        examples = self._stage.examples(batch, self._device)
        drawn = levels(self._drawn(model, examples, batch["keys"]).cpu())
        rows = [
            (self._condition(painted, seen), _pixels(picture), _pixels(truth))
            for painted, seen, picture, truth in zip(batch["condition"], examples.condition, drawn, images, strict=True)
        ]
        columns = ("condition", f"{self._stage.name} draws", "truth")
        return grid_png(PictureGrid(columns, rows, batch["keys"]))

    def _drawn(self, model: PITIModel, examples: Examples, keys: list[str]) -> Tensor:
        noise = normal_pictures(keys, examples.pictures.shape[1:], self._config.seed, "samples").to(self._device)
        with autocast(self._device, self._stage.settings.precision):
            latent, null_latent = model.encode(examples.condition), model.encode(None, len(keys))

        def predict(x_t: Tensor, t: Tensor, *, null: bool = False) -> Tensor:
            with autocast(self._device, self._stage.settings.precision):
                output: Tensor = model(x_t, t, latent=null_latent if null else latent, low_res=examples.low_res)
            return output

        sampling = self._config.sampling
        scale = 1.0 if self._stage.is_upsampler else sampling.guidance_scale
        model_fn = guided(predict, scale, sampling.normalized_guidance)
        return self._diffusion.sample(model_fn, noise.shape, noise, "unipc")

    def _condition(self, painted: Tensor, seen: Tensor) -> NDArray[np.uint8]:
        """A condition as people look at it: as it lies in the shards, in pretraining as the network sees it."""
        if self._stage.name == "pretrain":
            return _pixels(levels(seen[:3] if len(seen) >= 3 else seen.expand(3, -1, -1)).cpu())
        return condition_picture(painted.numpy(), self._config.data.modality)


def _pixels(picture: Tensor) -> NDArray[np.uint8]:
    return cast(NDArray[np.uint8], picture.permute(1, 2, 0).numpy())
