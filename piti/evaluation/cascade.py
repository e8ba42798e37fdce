"""The cascade: condition -> base network -> 8 bits -> upsampler -> picture.

Each picture's noise is a function of (config seed, key, variant, network) alone, so neither the batch it is drawn in
nor the number of workers changes it, and networks of different stages begin from the same noise.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from piti.checkpoints import final_checkpoint
from piti.config import Config, ScheduleConfig
from piti.data.conditions import unit_range
from piti.data.examples import ExampleReader
from piti.data.geometry import base_pictures
from piti.data.shards import DamagedSample
from piti.diffusion import GaussianDiffusion, PictureNoise, guided, quantize_8bit
from piti.errors import DataError, repair_advice
from piti.evaluation.picture_sets import Drawing, Part, PictureSetName, write_pictures
from piti.models import Latent, PITIModel, build_model, round_weights
from piti.models.checkpoints import load_model
from piti.seeds import stable_hash
from piti.training.workers import autocast

Network = Literal["base", "upsampler"]


@dataclass(frozen=True)
class Order:
    """A picture to be drawn: the key of its condition, its variant, and the condition float32 (C, S, S) in [-1, 1].

    `low_res`: float32 (3, s, s) in [-1, 1], the truth at the base network's size, where the upsampler begins from that.
    """

    key: str
    variant: int
    condition: Tensor
    low_res: Tensor | None = None


def picture_seed(seed: int, key: str, variant: int = 0, network: Network = "base") -> int:
    """The 64-bit seed of all noise that a network adds to a picture."""
    return stable_hash("sample", seed, key, variant, network)


def draw_base(model: PITIModel, orders: Sequence[Order], config: Config) -> Tensor:
    """Pictures of the base network under normalised guidance, at 8-bit levels: float32 (N, 3, s, s) in [-1, 1]."""
    sampling = config.sampling
    device = _device_of(model)
    diffusion = _diffusion(config.diffusion.base, sampling.base_respacing)
    side = config.models.base.image_size
    noise = _noise(orders, config, "base", side, device)
    with torch.no_grad(), autocast(device, sampling.precision):
        latent = model.encode(_conditions(orders, device))
        null_latent = model.encode(None, len(orders))

    both = Latent(*(torch.cat(parts) for parts in zip(latent, null_latent, strict=True)))

    def predict(x_t: Tensor, t: Tensor, *, null: bool = False) -> Tensor:
        with autocast(device, sampling.precision):
            output: Tensor = model(x_t, t, latent=null_latent if null else latent)
        return output

    def predict_both(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(device, sampling.precision):
            conditional, null = model(x_t.repeat(2, 1, 1, 1), t.repeat(2), latent=both).chunk(2)
        return conditional, null

    pictures = diffusion.sample(
        guided(predict, sampling.guidance_scale, sampling.normalized_guidance, predict_both),
        (len(orders), 3, side, side),
        noise.initial(),
        sampling.base_sampler,
        step_noise=noise.step,
    )
    return quantize_8bit(pictures)


def draw_upsampled(model: PITIModel, orders: Sequence[Order], low_res: Tensor, config: Config) -> Tensor:
    """Pictures of the upsampler, without guidance: float32 (N, 3, S, S) in [-1, 1] from low_res (N, 3, s, s)."""
    sampling = config.sampling
    device = _device_of(model)
    diffusion = _diffusion(config.diffusion.upsampler, sampling.upsampler_respacing)
    side = config.models.upsampler.image_size
    noise = _noise(orders, config, "upsampler", side, device)
    with torch.no_grad(), autocast(device, sampling.precision):
        latent = model.encode(_conditions(orders, device))

    def predict(x_t: Tensor, time: Tensor) -> Tensor:
        with autocast(device, sampling.precision):
            output: Tensor = model(x_t, time, latent=latent, low_res=low_res)
        return output

    return diffusion.sample(
        predict,
        (len(orders), 3, side, side),
        noise.initial() * sampling.upsampler_noise_scale,
        sampling.upsampler_sampler,
        step_noise=noise.step,
    )


class Cascade:
    """Draws parts of the sample step. Networks are loaded when first needed; one base network at a time is kept.

    `inputs` are the job's: `shards`, `checkpoint`, `upsampler`, and `stage1` (a run) where stages are compared.
    """

    def __init__(self, config: Config, inputs: Mapping[str, str], device: str = "cpu") -> None:
        self._config = config
        self._inputs = dict(inputs)
        self._device = torch.device(device)
        self._base: tuple[str, PITIModel] | None = None
        self._upsampler: PITIModel | None = None
        self._examples = ExampleReader(inputs["shards"], "validation", config.data, None, config.scale)

    def draw_part(self, part: Part, output: str) -> int:
        """Draw a part and publish its tars in `output`. Returns how many pictures each holds.

        Raises CheckpointError or DataError for inputs that are missing or damaged: figures of fewer pictures than
        asked for would be other figures.
        """
        pictures: dict[PictureSetName, dict[str, NDArray[np.uint8]]] = {product: {} for product in part.products}
        waiting = self._orders(part)
        while orders := list(itertools.islice(waiting, self._config.sampling.batch_size)):
            names = [order.key if order.variant == 0 else f"{order.key}.{order.variant}" for order in orders]
            for product, drawn in self._draw(part.drawing, orders).items():
                pictures[product].update(zip(names, to_uint8(drawn), strict=True))
        for product, named in pictures.items():
            write_pictures(part.uri(output, product), named)
        return len(pictures[part.products[0]])

    def _orders(self, part: Part) -> Iterator[Order]:
        for number in range(part.first, part.last):
            try:
                example = self._examples.example(number, None)
            except DamagedSample as error:
                key, shards = self._examples.keys[number], self._inputs["shards"]
                raise DataError(f"{shards}: sample {key} is damaged: {error}", repair_advice(shards)) from error
            condition = unit_range(example.condition)
            low_res = None
            if part.drawing == "upsampled":
                low_res = base_pictures(unit_range(example.image)[None], self._config.models.base.image_size)[0]
            for variant in part.variants:
                yield Order(example.key, variant, condition, low_res)

    def _draw(self, drawing: Drawing, orders: Sequence[Order]) -> dict[PictureSetName, Tensor]:
        if drawing == "upsampled":
            low_res = torch.stack([cast(Tensor, order.low_res) for order in orders]).to(self._device)
            return {"upsampled": draw_upsampled(self._upsampler_network(), orders, low_res, self._config)}
        base = draw_base(self._base_network(drawing), orders, self._config)
        if drawing in ("stage1", "untrained"):
            return {drawing: base}
        final = draw_upsampled(self._upsampler_network(), orders, base, self._config)
        return {"base": base, "final": final} if drawing == "cascade" else {"diversity": final}

    def _base_network(self, drawing: Drawing) -> PITIModel:
        source = {"stage1": "stage1", "untrained": "untrained"}.get(drawing, "checkpoint")
        if self._base is None or self._base[0] != source:
            self._base = None  # two do not have to fit into memory
            self._base = (source, self._load_base(source))
        return self._base[1]

    def _load_base(self, source: str) -> PITIModel:
        model_config = self._config.models.base
        if source == "untrained":
            return self._ready(build_model(model_config, seed=self._config.seed))
        uri = final_checkpoint(self._inputs["stage1"]) if source == "stage1" else self._inputs["checkpoint"]
        return self._ready(load_model(uri, model_config))

    def _upsampler_network(self) -> PITIModel:
        if self._upsampler is None:
            self._upsampler = self._ready(load_model(self._inputs["upsampler"], self._config.models.upsampler))
        return self._upsampler

    def _ready(self, model: PITIModel) -> PITIModel:
        return ready_to_draw(model, self._config, self._device)


def ready_to_draw(model: PITIModel, config: Config, device: torch.device) -> PITIModel:
    """The network on `device` for drawing alone: no gradients, no dropout, weights of `sampling.precision`."""
    model = model.to(device).eval().requires_grad_(False)
    return round_weights(model) if config.sampling.precision == "bf16" else model


def _noise(orders: Sequence[Order], config: Config, network: Network, side: int, device: torch.device) -> PictureNoise:
    seeds = [picture_seed(config.seed, order.key, order.variant, network) for order in orders]
    return PictureNoise(seeds, (3, side, side), device)


def _conditions(orders: Sequence[Order], device: torch.device) -> Tensor:
    return torch.stack([order.condition for order in orders]).to(device)


def _diffusion(schedule: ScheduleConfig, respacing: str) -> GaussianDiffusion:
    return GaussianDiffusion(schedule.schedule, schedule.steps, respacing, schedule.prediction)


def _device_of(model: PITIModel) -> torch.device:
    return next(model.parameters()).device


def to_uint8(pictures: Tensor) -> list[NDArray[np.uint8]]:
    """float (N, 3, H, W) in [-1, 1] -> N times uint8 (H, W, 3); truncated as between the networks."""
    levels = (quantize_8bit(pictures.float()) + 1).mul(127.5).round().to(torch.uint8)
    return list(levels.permute(0, 2, 3, 1).contiguous().cpu().numpy())
