"""One training example out of a stored sample: picture, condition and low-resolution picture of the same region."""

from __future__ import annotations

import json
import random
import threading
import time
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from piti.config import DataConfig, DegradationConfig, Modality
from piti.data.conditions import StoredCondition, paint_condition
from piti.data.decoding import (
    DamagedPictureError,
    LowResolution,
    decode_condition,
    decode_image,
    decode_variant,
    num_variants,
)
from piti.data.degrading import draw_variant
from piti.data.resizing import CropBox, crop_photograph, resize_edges, resize_nearest
from piti.data.shards import DamagedSample, ShardReader
from piti.errors import DataError
from piti.seeds import stable_hash

Degraded = str | DegradationConfig | None
"""Source of the low-resolution pictures: companions at a URI, a recipe for degrading while reading, or None."""


@dataclass(frozen=True)
class Example:
    """`image` (3, S, S), `condition` (C, S, S), `low_res` (3, s, s) or None; all uint8, see `unit_range`."""

    key: str
    image: Tensor
    condition: Tensor
    low_res: Tensor | None


@dataclass(frozen=True)
class EpochSeed:
    """The seed and the epoch, which decide an example's chances."""

    seed: int
    epoch: int


@dataclass(frozen=True)
class Chances:
    """The random choices for a sample in an epoch. `variant`: number of the degraded variant (0 where there are none)."""

    flip: bool
    variant: int
    box: CropBox


def chances_of(seed: int, epoch: int, key: str, *, num_variants: int, crop_from: tuple[int, ...]) -> Chances:
    """The chances of a sample, from (seed, epoch, key) alone. `crop_from`: shape (height, width) of its picture."""
    # Python's generator, whose random() is the same in every version: NumPy's takes ten times as long to seed.
    chance = random.Random(stable_hash("chances", seed, epoch, key)).random
    return Chances(chance() < 0.5, int(chance() * max(1, num_variants)), CropBox.random(chance, *crop_from[:2]))


class Spent:
    """Seconds that all threads together spent on reading samples from storage, and on decoding and rendering them."""

    def __init__(self) -> None:
        self.reading_seconds = self.decoding_seconds = 0.0
        self._lock = threading.Lock()

    def add(self, reading_seconds: float, decoding_seconds: float) -> None:
        with self._lock:
            self.reading_seconds += reading_seconds
            self.decoding_seconds += decoding_seconds


class ExampleReader:
    """Examples of a split by number, from a set of shards and, where given, its degraded companions.

    `degraded`: URI of the companions, a recipe for degrading pictures while reading, or None.

    Raises DataError where a set is missing, was made for other settings, or companions do not match key by key.
    """

    def __init__(self, shards: str, split: str, data: DataConfig, degraded: Degraded, scale: int) -> None:
        self._data = data
        self._reader = ShardReader(shards, split)
        self._companions = ShardReader(degraded, split) if isinstance(degraded, str) else None
        self._recipe = degraded if isinstance(degraded, DegradationConfig) else None
        self._scale = scale
        self.spent = Spent()
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

    def example(self, number: int, epoch_seed: EpochSeed | None) -> Example:
        """Example `number`; `epoch_seed` None (validation): not flipped, central crop, variant 0. Raises DamagedSample."""
        began = time.monotonic()
        members = self._reader.read(number)
        companion = None if self._companions is None else self._companions.read(number)
        read = time.monotonic()
        try:
            return self._build(self.keys[number], members, companion, epoch_seed)
        except DamagedPictureError as error:
            raise DamagedSample(str(error)) from error
        finally:
            self.spent.add(read - began, time.monotonic() - read)

    def condition(self, number: int) -> tuple[StoredCondition, dict[str, Any]]:
        """The condition of `example(number, None)` before it is painted, and the sample's JSON. Raises DamagedSample."""
        members = self._reader.read(number)
        try:
            if self._data.geometry != "random":
                condition = decode_condition(members)
            else:
                box = CropBox.central(*decode_image(members).shape[:2])
                condition = _resized(decode_condition(members, box), self._data.modality, self._data.image_size)
        except DamagedPictureError as error:
            raise DamagedSample(str(error)) from error
        return condition, json.loads(members["json"])

    def _build(
        self, key: str, members: dict[str, bytes], companion: dict[str, bytes] | None, epoch_seed: EpochSeed | None
    ) -> Example:
        data = self._data
        image = decode_image(members)
        box = CropBox.central(*image.shape[:2])
        flip, variant = False, 0
        if epoch_seed is not None:
            variants = 0 if companion is None else num_variants(companion)
            chances = chances_of(
                epoch_seed.seed, epoch_seed.epoch, key, num_variants=variants, crop_from=image.shape[:2]
            )
            box, variant, flip = chances.box, chances.variant, chances.flip and data.horizontal_flip
        low_res = None
        low = self._low_resolution(key, image, companion, variant, epoch_seed)
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
        painted = paint_condition(condition, data.modality, data.num_classes)
        small = None if low_res is None else _picture(low_res, data.image_size // self._scale)
        return Example(key, _picture(image, data.image_size), _whole(painted, data.image_size), small)

    def _low_resolution(
        self,
        key: str,
        image: NDArray[np.uint8],
        companion: dict[str, bytes] | None,
        variant: int,
        epoch_seed: EpochSeed | None,
    ) -> LowResolution | None:
        """The stored variant, or one drawn for (seed, epoch, key); validation draws the same one every time."""
        if companion is not None:
            return decode_variant(companion, variant)
        if self._recipe is None:
            return None
        chance = ("validation",) if epoch_seed is None else (epoch_seed.seed, epoch_seed.epoch)
        rng = np.random.default_rng(stable_hash("degrade online", *chance, key))
        return draw_variant(image, self._data, self._recipe, self._scale, rng)[0]


def _picture(image: NDArray[np.uint8], side: int) -> Tensor:
    """uint8 (side, side, 3) -> (3, side, side). Raises DamagedPictureError where the size is another."""
    return _whole(image.transpose(2, 0, 1), side)


def _whole(levels: NDArray[np.uint8], side: int) -> Tensor:
    """Levels (C, side, side) as a tensor. Raises DamagedPictureError where the size is another."""
    if levels.shape[1:] != (side, side):
        raise DamagedPictureError(f"picture is {levels.shape[2]}x{levels.shape[1]}, not {side}x{side}")
    return torch.from_numpy(levels)


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
