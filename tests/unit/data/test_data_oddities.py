"""Conditions that can be read but are hardly what was meant: the shard report says so and names the key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from piti.cli.app import app
from piti.config import DataConfig
from piti.data.decoding import decode_condition
from piti.data.shards import ShardSet
from piti.jobs.shard import odd_samples

INK = np.zeros((80, 96), bool)
INK[20:22], INK[:, 60:62] = True, True


@pytest.fixture
def shard_conditions(
    tmp_path: Path, photograph: np.ndarray, make_data: Callable[..., DataConfig], shard_now: Callable[..., ShardSet]
) -> Callable[..., ShardSet]:
    """Shard photographs with these conditions, one each."""

    def shard(conditions: list[np.ndarray], suffix: str = "png", **settings: Any) -> ShardSet:
        for number, condition in enumerate(conditions):
            for folder in ("i", "c"):
                (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(np.ascontiguousarray(photograph[number : number + 80, :96])).save(
                tmp_path / "i" / f"{number}.png"
            )
            Image.fromarray(condition).save(tmp_path / "c" / f"{number}.{suffix}")
        source = {"conditions": str(tmp_path / "c"), **settings.pop("source", {})}
        data = make_data(tmp_path / "i", source=source, geometry="random", **settings)
        return shard_now(data, tmp_path / "out")

    return shard


def drawn(shards: ShardSet) -> list[np.ndarray]:
    names = [name for split in shards.splits for name in shards.shard_names(split)]
    return [decode_condition(members).values > 0 for name in names for _, members in shards.samples(name)]


@pytest.mark.parametrize(
    ("is_dark", "invert", "lines", "oddity"),
    [
        (False, "auto", INK, None),
        (
            True,
            "auto",
            INK,
            "6 of 6 samples: lines are taken to be dark, as less than half of the sketch is: see data.sketch.invert",
        ),
        (True, True, INK, None),
        (True, False, ~INK, "6 of 6 samples: more than half of the sketch is lines: see data.sketch.invert"),
    ],
)
def test_dark_lines_are_told_of_unless_the_config_knows(
    is_dark: bool, invert: bool | str, lines: np.ndarray, oddity: str | None, shard_conditions: Callable[..., ShardSet]
) -> None:
    sketch = np.where(is_dark != INK, 255, 0).astype(np.uint8)
    shards = shard_conditions([sketch] * 6, sketch={"invert": invert})
    assert odd_samples(shards.uri) == ([] if oddity is None else [oddity])
    for found in drawn(shards):
        np.testing.assert_array_equal(found, lines)


@pytest.mark.parametrize("labels", [np.full((80, 96), 3, np.uint8), np.where(INK, 255, 0).astype(np.uint8)])
def test_labels_that_are_all_one_are_told_of(labels: np.ndarray, shard_conditions: Callable[..., ShardSet]) -> None:
    """Binary masks of 0 and 255, too: 255 means unlabelled."""
    shards = shard_conditions([labels] * 6, modality="mask", num_classes=5)
    reason = "the label map holds a single label, 255 (unlabelled) aside: see data.source"
    assert odd_samples(shards.uri) == [f"6 of 6 samples: {reason}"]
    stats = CliRunner().invoke(app, ["shards", "stats", shards.uri])
    assert f"accepted: 6 x {reason}" in stats.output.splitlines()


def test_a_few_maps_of_one_label_are_not(shard_conditions: Callable[..., ShardSet]) -> None:
    maps = [np.full((80, 96), 3, np.uint8)] * 2 + [INK.astype(np.uint8)] * 4
    assert odd_samples(shard_conditions(maps, modality="mask", num_classes=5).uri) == []


@pytest.mark.parametrize(("unit_metres", "is_odd"), [(1.0, False), (0.001, True), (1000.0, True)])
def test_depth_in_another_unit_is_told_of(
    unit_metres: float, is_odd: bool, shard_conditions: Callable[..., ShardSet]
) -> None:
    """Metres as floats: with the unit of millimetres everything is nearer than half a metre."""
    metres = np.linspace(1, 20, 80 * 96, dtype=np.float32).reshape(80, 96)
    shards = shard_conditions([metres] * 6, "tif", modality="geometry", source={"depth_unit_metres": unit_metres})
    odd = ["6 of 6 samples: depth is the same everywhere from 0.5 m to 300 m: see data.source.depth_unit_metres"]
    assert odd_samples(shards.uri) == (odd if is_odd else [])
