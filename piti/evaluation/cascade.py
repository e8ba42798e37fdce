"""The cascade: condition -> base network -> 8 bits -> upsampler -> picture.

Each picture's noise depends on (config seed, key, variant, network) alone, not on the batch or the number of workers,
and is the same for networks of different stages.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from piti import storage
from piti.config import Config, ScheduleConfig, WeightsRef
from piti.data.conditions import condition_picture, levels, unit_range
from piti.data.examples import ExampleReader
from piti.data.resizing import base_pictures
from piti.data.shards import named_sample
from piti.diffusion import GaussianDiffusion, PictureNoise, guided, quantize_8bit
from piti.errors import CheckpointError
from piti.evaluation.picture_sets import (
    Part,
    PictureSet,
    PictureSetName,
    describe_sampling,
    set_folders,
    write_pictures,
)
from piti.evaluation.targets import FILE_SUFFIXES
from piti.models import Latent, PITIModel, build_model, round_weights
from piti.models.checkpoints import load_model
from piti.models.pretrained import load_pretrained
from piti.seeds import stable_hash
from piti.training.workers import autocast

Network = Literal["base", "upsampler"]
BASE_SIZE_SETS: tuple[PictureSetName, ...] = ("base", "stage1", "untrained")


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
    return _at_8_bits(pictures, orders, "base")


def draw_upsampled(model: PITIModel, orders: Sequence[Order], low_res: Tensor, config: Config) -> Tensor:
    """Pictures of the upsampler, without guidance, at 8-bit levels: float32 (N, 3, S, S) in [-1, 1] from low_res (N, 3, s, s)."""
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

    pictures = diffusion.sample(
        predict,
        (len(orders), 3, side, side),
        noise.initial() * sampling.upsampler_noise_scale,
        sampling.upsampler_sampler,
        step_noise=noise.step,
    )
    return _at_8_bits(pictures.float(), orders, "upsampler")


class Cascade:
    """Draws parts of picture sets. Networks are loaded when first needed; one base network at a time is kept.

    `inputs` are the job's: `shards`, the networks `checkpoint`, `upsampler` and, where it is compared, `stage1`
    (checkpoint folders or files), and the folders of the picture sets. `pipelined`: the base network draws the next
    batch while the upsampler has this one; by default on a GPU.
    """

    def __init__(
        self, config: Config, inputs: Mapping[str, str], device: str = "cpu", pipelined: bool | None = None
    ) -> None:
        self._config = config
        self._inputs = dict(inputs)
        self._folders = set_folders(inputs)
        self._device = torch.device(device)
        self._pipelined = self._device.type == "cuda" if pipelined is None else pipelined
        self._base: tuple[str, _Loaded] | None = None
        self._upsampler: _Loaded | None = None
        self._examples = ExampleReader(inputs["shards"], "validation", config.data, None, config.scale)

    def draw_part(self, part: Part) -> int:
        """Draw a part and publish its tar. Returns how many pictures it holds.

        A part of `final` begins with the pictures of `base`; where those are not there, it draws and publishes them too.
        Raises CheckpointError or DataError for inputs that are missing or damaged: figures of fewer pictures than
        asked for would be other figures.
        """
        first = self._first_half(part)
        about = {"set": part.set, **first.about, **describe_sampling(self._config)}
        if part.set not in BASE_SIZE_SETS:
            about["upsampler"] = self._upsampler_network().about
        low, full = _Tar(self._config), _Tar(self._config)
        drawn: Iterator[tuple[list[Order], Tensor]]
        if self._pipelined:
            drawn = _one_ahead(first.draw, self._batches(part), self._device)
        else:
            drawn = ((orders, first.draw(orders)) for orders in self._batches(part))
        for orders, pictures in drawn:
            if first.is_new_base:
                low.add(orders, pictures, {"set": "base", **first.about, **describe_sampling(self._config)})
            if part.set not in BASE_SIZE_SETS:
                pictures = draw_upsampled(self._upsampler_network().model, orders, pictures, self._config)
            full.add(orders, pictures, about)
        if first.is_new_base:
            low.publish(storage.join(self._folders["base"], part.file_name))
        full.publish(storage.join(self._folders[part.set], part.file_name))
        return part.num_pictures

    def _first_half(self, part: Part) -> _FirstHalf:
        """The source of pictures at the base network's size: the truth, stored pictures, or drawing them."""
        if part.set == "upsampled":
            return _FirstHalf(self._truth, {"base": {"weights": "none: the truth's low-resolution pictures"}})
        keys = self._examples.keys[part.first : part.last]
        if part.set == "final":
            stored = PictureSet(self._folders["base"], range(part.first, part.last))
            if all(key in stored for key in keys):
                about = {"base": stored.about(keys[0]).get("base", {})}
                return _FirstHalf(lambda orders: self._stored(stored, orders), about)
        loaded = self._base_network(part.set)
        return _FirstHalf(
            lambda orders: draw_base(loaded.model, orders, self._config), {"base": loaded.about}, part.set == "final"
        )

    def _truth(self, orders: Sequence[Order]) -> Tensor:
        return torch.stack([cast(Tensor, order.low_res) for order in orders]).to(self._device)

    def _stored(self, stored: PictureSet, orders: Sequence[Order]) -> Tensor:
        """Pictures of `base` as `draw_base` gave them."""
        pictures = torch.from_numpy(np.stack([stored.picture(order.key) for order in orders]))
        return pictures.permute(0, 3, 1, 2).to(self._device).float() / 127.5 - 1.0

    def _batches(self, part: Part) -> Iterator[list[Order]]:
        waiting = self._orders(part)
        while orders := list(itertools.islice(waiting, self._config.sampling.batch_size)):
            yield orders

    def _orders(self, part: Part) -> Iterator[Order]:
        for number in range(part.first, part.last):
            with named_sample(self._inputs["shards"], self._examples.keys[number]):
                example = self._examples.example(number, None)
            condition = unit_range(example.condition)
            low_res = None
            if part.set == "upsampled":
                low_res = base_pictures(unit_range(example.image)[None], self._config.models.base.image_size)[0]
            for variant in part.variants:
                yield Order(example.key, variant, condition, low_res)

    def _base_network(self, name: PictureSetName) -> _Loaded:
        source = {"stage1": "stage1", "untrained": "untrained"}.get(name, "checkpoint")
        if self._base is None or self._base[0] != source:
            self._base = None  # two do not have to fit into memory
            self._base = (source, self._load(None if source == "untrained" else self._inputs[source], "base"))
        return self._base[1]

    def _upsampler_network(self) -> _Loaded:
        if self._upsampler is None:
            self._upsampler = self._load(self._inputs["upsampler"], "upsampler")
        return self._upsampler

    def _load(self, uri: str | None, network: Network) -> _Loaded:
        """A checkpoint folder of ours, a file of GLIDE's or PITI's, or (None) an untrained network."""
        seed, model_config = self._config.seed, getattr(self._config.models, network)
        about: dict[str, Any] = {"uri": uri}
        if uri is None:
            model = build_model(model_config, seed=seed)
            about = {"weights": f"untrained, seed {seed}"}
        elif uri.endswith(FILE_SUFFIXES):
            model = build_model(model_config, seed=seed)
            about |= load_pretrained(model, WeightsRef(path=uri), network)
        else:
            model = load_model(uri, model_config)
        return _Loaded(ready_to_draw(model, self._config, self._device), about)


def ready_to_draw(model: PITIModel, config: Config, device: torch.device) -> PITIModel:
    """The network on `device` for drawing alone: no gradients, no dropout, weights of `sampling.precision`."""
    model = model.to(device).eval().requires_grad_(False)
    return round_weights(model) if config.sampling.precision == "bf16" else model


@dataclass(frozen=True)
class _Loaded:
    """A network, and what is known of its weights (JSON-able)."""

    model: PITIModel
    about: dict[str, Any]


@dataclass(frozen=True)
class _FirstHalf:
    """`draw` gives orders their pictures at the base network's size, `about` says how.

    `is_new_base`: they are pictures of the set `base` that are not stored yet.
    """

    draw: Callable[[Sequence[Order]], Tensor]
    about: dict[str, Any]
    is_new_base: bool = False


class _Tar:
    """What one tar of a picture set will hold."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._pictures: dict[str, NDArray[np.uint8]] = {}
        self._conditions: dict[str, NDArray[np.uint8]] = {}
        self._about: dict[str, dict[str, Any]] = {}

    def add(self, orders: Sequence[Order], pictures: Tensor, about: dict[str, Any]) -> None:
        """`pictures`: float (N, 3, H, W) at 8-bit levels in [-1, 1]. `about`: how they were drawn."""
        for order, picture in zip(orders, to_uint8(pictures), strict=True):
            self._pictures[order.key if order.variant == 0 else f"{order.key}.{order.variant}"] = picture
            if order.key not in self._conditions:
                self._conditions[order.key] = condition_picture(
                    levels(order.condition).numpy(), self._config.data.modality
                )
            self._about[order.key] = {"key": order.key, **about}

    def publish(self, uri: str) -> None:
        write_pictures(uri, self._pictures, self._conditions, self._about)


def _one_ahead(
    draw: Callable[[list[Order]], Tensor], batches: Iterator[list[Order]], device: torch.device
) -> Iterator[tuple[list[Order], Tensor]]:
    """(batch, draw(batch)) in order. The next batch is drawn, on a GPU in a stream of its own, while one is in use.

    The one who iterates must be done with a batch's pictures, on the GPU too, before asking for the next.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def draw_beside(orders: list[Order]) -> Tensor:
        if stream is None:
            return draw(orders)
        with torch.cuda.stream(stream):
            pictures = draw(orders)
        stream.synchronize()
        return pictures

    with ThreadPoolExecutor(1, "piti-base") as pool:
        coming: deque[tuple[list[Order], Future[Tensor]]] = deque()
        for orders in batches:
            coming.append((orders, pool.submit(draw_beside, orders)))
            if len(coming) == 2:
                before, pictures = coming.popleft()
                yield before, pictures.result()
        for before, pictures in coming:
            yield before, pictures.result()


def _at_8_bits(pictures: Tensor, orders: Sequence[Order], network: Network) -> Tensor:
    """Raises CheckpointError for a picture with numbers that are not finite, which would become a black one."""
    finite = pictures.isfinite().flatten(1).all(dim=1).tolist()
    if not all(finite):
        raise CheckpointError(
            f"the {network} network draws numbers that are not finite, for {orders[finite.index(False)].key} first",
            "set sampling.precision to fp32, or take another checkpoint",
        )
    return quantize_8bit(pictures)


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
    """float (N, 3, H, W) at 8-bit levels in [-1, 1] -> N times uint8 (H, W, 3)."""
    return list(levels(pictures).permute(0, 2, 3, 1).contiguous().cpu().numpy())
