"""Pictures that are very large."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from piti.config import DataConfig
from piti.data.decoding import decode_image
from piti.data.shards import ShardSet

MakeData = Callable[..., DataConfig]
Shard = Callable[..., ShardSet]


def test_a_20_megapixel_photograph_is_one_like_others(
    photograph: np.ndarray, tmp_path: Path, make_data: MakeData, shard_now: Shard
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    large = cv2.resize(photograph, (5472, 3648), interpolation=cv2.INTER_CUBIC)
    Image.fromarray(large).save(folder / "large.jpg", quality=85)
    Image.fromarray(photograph[:90, :120]).save(folder / "small.png")
    shards = shard_now(make_data(folder, source={"validation_share": 0.5}), tmp_path / "out")
    assert shards.rejected() == []
    rows = {row["source"]: row for row in shards.manifest.to_pylist()}
    assert (rows["large.jpg"]["width"], rows["large.jpg"]["height"]) == (5472, 3648)
    stored = [members for name in shards.stats for _, members in shards.samples(name)]
    images = {json.loads(members["json"])["source"]: decode_image(members) for members in stored}
    expected = np.asarray(Image.fromarray(photograph).resize((64, 64), Image.Resampling.BICUBIC))
    difference = np.abs(images["large.jpg"].astype(int) - expected)
    assert difference.mean() < 6, "the same photograph, ten times enlarged, JPEG twice, and shrunk again"
