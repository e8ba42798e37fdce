"""One training example out of a stored sample: picture, condition and low-resolution picture of the same region."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from piti.config import DataConfig, DegradationConfig
from piti.data.conditions import CHANNELS, StoredCondition, paint_condition
from piti.data.decoding import (
    DamagedPictureError,
    LowResolution,
    decode_condition,
    decode_image,
    decode_variant,
    num_variants,
)
from piti.data.degrading import draw_variant
from piti.data.geometry import CropBox, Modality, crop_photograph, resize_edges, resize_nearest
from piti.data.order import draw_chances
from piti.data.shard_reader import DamagedSample, ShardReader
from piti.errors import DataError
from piti.seeds import stable_hash

Degraded = str | DegradationConfig | None
"""Where low-resolution pictures come from: companions at a URI, a recipe applied as pictures are read, or nowhere."""


@dataclass(frozen=True)
class Example:
    """`image` (3, S, S), `condition` (C, S, S), `low_res` (3, s, s) or None; all uint8, see `unit_range`."""

    key: str
    image: Tensor
    condition: Tensor
    low_res: Tensor | None


class BatchRoom:
    """Room for `count` examples, each written where the batch will hold it, so that nothing is copied once more.

    `image` (N, 3, S, S), `condition` (N, C, S, S) and `low_res` (N, 3, s, s) or None, all uint8; pictures lie in
    memory as decoders leave them, channels last. NumPy allocates, since it asks Linux for huge pages: touching a new
    batch's small ones takes longer than filling them.
    """

    def __init__(self, count: int, data: DataConfig, low_res_size: int | None) -> None:
        size = data.image_size
        self.image = _pictures(count, size)
        self.condition = torch.from_numpy(np.empty((count, CHANNELS[data.modality], size, size), dtype=np.uint8))
        self.low_res = None if low_res_size is None else _pictures(count, low_res_size)


@dataclass(frozen=True)
class Draw:
    """What an example's chances are drawn from."""

    seed: int
    epoch: int


class ExampleReader:
    """Examples of a split by number, from a set of shards and, where given, its degraded companions.

    `degraded`: URI of the companions, or a recipe by which pictures are degraded as they are read, or None for none.

    Raises DataError where a set is missing, was made for other settings, or companions do not match key by key.
    """

    def __init__(self, shards: str, split: str, data: DataConfig, degraded: Degraded, scale: int) -> None:
        self._data = data
        self._reader = ShardReader(shards, split)
        self._companions = ShardReader(degraded, split) if isinstance(degraded, str) else None
        self._recipe = degraded if isinstance(degraded, DegradationConfig) else None
        self._scale = scale
        self.keys = self._reader.index.keys
        self.shard = self._reader.index.shard
        if not self.keys:
            raise DataError(f"{shards} has no samples in split {split}", "run piti/prepare")
        for name in ("modality", "num_classes", "image_size", "geometry"):
            _check_made_for(shards, self._reader.shards.about, name, getattr(data, name))
        if self._companions is not None:
            _check_made_for(str(degraded), self._companions.shards.about, "scale", scale)
            if self._companions.index.shards != self._reader.index.shards or self._companions.index.keys != self.keys:
                problem = f"{degraded} does not hold the same samples as {shards}"
                raise DataError(problem, "delete its DONE.json and manifest.parquet and run piti/prepare")

    def __len__(self) -> int:
        return len(self.keys)

    def room(self, count: int) -> BatchRoom:
        """Room for `count` of these examples."""
        has_low_res = self._companions is not None or self._recipe is not None
        return BatchRoom(count, self._data, self._data.image_size // self._scale if has_low_res else None)

    def example(self, number: int, draw: Draw | None, room: BatchRoom | None = None, place: int = 0) -> Example:
        """Example `number`; `draw` None (validation): not flipped, central crop, variant 0. Raises DamagedSample.

        Its tensors are those at `place` of `room`; without one, of their own.
        """
        members = self._reader.read(number)
        companion = None if self._companions is None else self._companions.read(number)
        try:
            return self._build(self.keys[number], members, companion, draw, room or self.room(1), place)
        except DamagedPictureError as error:
            raise DamagedSample(str(error)) from error

    def _build(
        self,
        key: str,
        members: dict[str, bytes],
        companion: dict[str, bytes] | None,
        draw: Draw | None,
        room: BatchRoom,
        place: int,
    ) -> Example:
        data = self._data
        image = decode_image(members)
        box = CropBox.central(*image.shape[:2])
        flip, variant = False, 0
        if draw is not None:
            variants = 0 if companion is None else num_variants(companion)
            chances = draw_chances(draw.seed, draw.epoch, key, num_variants=variants, crop_from=image.shape[:2])
            box, variant, flip = chances.box, chances.variant, chances.flip and data.horizontal_flip
        low_res = None
        low = self._low_resolution(key, image, companion, variant, draw)
        if low is not None:
            box, low_res = low.box or box, low.image
        if data.geometry == "random":
            image = crop_photograph(image, box, data.image_size)
            condition = _resized(decode_condition(members, box), data.modality, data.image_size)
        else:
            condition = decode_condition(members)
        if flip:
            image, condition = _mirrored(image), condition.flipped()
            low_res = None if low_res is None else _mirrored(low_res)
        written = Example(
            key, room.image[place], room.condition[place], None if room.low_res is None else room.low_res[place]
        )
        _write(paint_condition(condition, data.modality, data.num_classes), written.condition)
        _write(image.transpose(2, 0, 1), written.image)
        if low_res is not None and written.low_res is not None:
            _write(low_res.transpose(2, 0, 1), written.low_res)
        return written

    def _low_resolution(
        self, key: str, image: NDArray[np.uint8], companion: dict[str, bytes] | None, variant: int, draw: Draw | None
    ) -> LowResolution | None:
        """The stored variant, or one drawn for (seed, epoch, key); validation draws the same one every time."""
        if companion is not None:
            return decode_variant(companion, variant)
        if self._recipe is None:
            return None
        chance = ("validation",) if draw is None else (draw.seed, draw.epoch)
        rng = np.random.default_rng(stable_hash("degrade online", *chance, key))
        drawn = draw_variant(image, self._data, self._recipe, self._scale, rng)
        return LowResolution(drawn.image, drawn.box)


def _pictures(count: int, side: int) -> Tensor:
    """Room for pictures: uint8 (N, 3, side, side), channels last in memory."""
    return torch.from_numpy(np.empty((count, side, side, 3), dtype=np.uint8)).permute(0, 3, 1, 2)


def _write(levels: NDArray[np.uint8], target: Tensor) -> None:
    """Copy levels (C, H, W) into `target`. Raises DamagedPictureError where the sizes differ."""
    if levels.shape != target.shape:
        height, width = target.shape[1:]
        raise DamagedPictureError(f"picture is {levels.shape[2]}x{levels.shape[1]}, not {width}x{height}")
    np.copyto(target.numpy(), levels)


def _mirrored(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.flip(image, 1), dtype=np.uint8)


def _resized(stored: StoredCondition, modality: Modality, size: int) -> StoredCondition:
    if modality == "sketch":
        return StoredCondition(resize_edges(stored.values, size, size))
    normals = None if stored.normals is None else resize_nearest(stored.normals, size, size)
    return StoredCondition(resize_nearest(stored.values, size, size), normals)


def _check_made_for(uri: str, about: dict[str, Any], name: str, wanted: object) -> None:
    if about.get(name) != wanted:
        raise DataError(
            f"{uri} was made with {name} {about.get(name)!r}, the config says {wanted!r}", "run piti/prepare"
        )
