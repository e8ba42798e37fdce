"""Without stored companions pictures are degraded as they are read: seeded, in step with crop and flip."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from piti.config import DataConfig, DegradationConfig
from piti.data.conditions import unit_range
from piti.data.examples import ExampleReader
from piti.data.loader import TrainingLoader, validation_batches
from piti.data.shards import ShardSet

Batch = dict[str, Any]
ONLINE = DegradationConfig(variants=0)


def load(shards: ShardSet, data: DataConfig, **changes: int) -> list[Batch]:
    """Four epochs of 32 training pictures or so, in batches of 8."""
    settings = {"batch_size": 8, "rank": 0, "world_size": 1, "num_workers": 0, "seed": 3, **changes}
    iterator = iter(TrainingLoader(shards.uri, data, degraded=ONLINE, scale=4, **settings))  # type: ignore[arg-type]
    batches = list(islice(iterator, 4 * shards.num_samples("train") // 8))
    iterator.close()  # type: ignore[attr-defined]
    return batches


def small_and_enlarged(batch: Batch) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each picture, averaged down to the low-resolution picture's size, beside that one; both in [-1, 1]."""
    pairs = []
    for image, low in zip(unit_range(batch["image"]), unit_range(batch["low_res"]), strict=True):
        shrunk = cv2.resize(image.permute(1, 2, 0).numpy(), low.shape[-1:] * 2, interpolation=cv2.INTER_AREA)
        pairs.append((shrunk, low.permute(1, 2, 0).numpy()))
    return pairs


@pytest.mark.parametrize("geometry", ["squash", "random"])
def test_low_resolution_pictures_show_the_same_region_the_same_way_round(
    geometry: str, picture_folder: Path, make_data: Callable[..., DataConfig], shard_now: Callable[..., ShardSet],
    tmp_path: Path,
) -> None:  # fmt: skip
    data = make_data(picture_folder, geometry=geometry)
    batches = load(shard_now(data, tmp_path), data)
    right = wrong = 0.0
    for batch in batches:
        assert batch["low_res"].shape == (8, 3, 16, 16)
        for shrunk, low in small_and_enlarged(batch):
            right += float(np.abs(shrunk - low).mean())
            wrong += float(np.abs(shrunk[:, ::-1] - low).mean())
    assert right < 0.45 * wrong


def test_the_same_in_every_reading_and_another_in_every_epoch(sketch_set: ShardSet, sketch_data: DataConfig) -> None:
    """But validation sees the same every time."""
    first, second = load(sketch_set, sketch_data), load(sketch_set, sketch_data, num_workers=2)
    assert all(torch.equal(a["low_res"], b["low_res"]) for a, b in zip(first, second, strict=True))
    seen: dict[str, list[torch.Tensor]] = {}
    for batch in first:
        for key, low in zip(batch["keys"], batch["low_res"], strict=True):
            seen.setdefault(key, []).append(low)
    repeats = [several for several in seen.values() if len(several) > 1]
    assert repeats
    assert all(not torch.equal(several[0], several[1]) for several in repeats)
    first, second = (
        list(
            validation_batches(
                ExampleReader(sketch_set.uri, "validation", sketch_data, ONLINE, 4), batch_size=3, limit=None
            )
        )
        for _ in range(2)
    )
    assert all(torch.equal(a["low_res"], b["low_res"]) for a, b in zip(first, second, strict=True))
