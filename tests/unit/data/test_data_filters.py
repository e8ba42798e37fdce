"""Class filters and few-shot subsets: what is left out is counted apart from what is unusable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from piti.config import DataConfig
from piti.data.decoding import decode_condition
from piti.data.shards import ShardSet
from piti.data.verify import verify_shards

MakeData = Callable[..., DataConfig]
Shard = Callable[..., ShardSet]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, photograph: np.ndarray) -> Path:
    """24 pictures; label map n shows n % 3 with a little 9 in every sixth, and 255; one picture is unusable."""
    root = tmp_path_factory.mktemp("labelled")
    for name in ("images", "labels"):
        (root / name).mkdir()
    for number in range(24):
        labels = np.full((64, 64), number % 3, np.uint8)
        labels[:8] = 255
        if number % 6 == 0:
            labels[40:44, 40:44] = 9
        Image.fromarray(np.ascontiguousarray(photograph[number : number + 64, :64])).save(
            root / "images" / f"{number}.png"
        )
        Image.fromarray(labels).save(root / "labels" / f"{number}.png")
    (root / "images" / "23.png").write_bytes(b"")
    return root


def mask_data(make_data: MakeData, root: Path, **settings: object) -> DataConfig:
    source = {"conditions": str(root / "labels"), "validation_share": 0.2}
    return make_data(root / "images", modality="mask", num_classes=10, source=source, **settings)


def test_pictures_without_a_required_class_are_left_out_and_counted(
    labelled: Path, tmp_path: Path, make_data: MakeData, shard_now: Shard
) -> None:
    shards = shard_now(mask_data(make_data, labelled, require_classes=[9, 2]), tmp_path)
    status = Counter(shards.manifest["status"].to_pylist())
    assert status == {"accepted": 4 + 7, "filtered": 12, "rejected": 1}
    assert [reason for _, reason in shards.rejected()] == ["file is empty (0 bytes)"]
    assert sum(stats.num_filtered for stats in shards.stats.values()) == 12
    assert sum(stats.num_items for stats in shards.stats.values()) == 24
    for split in shards.splits:
        for name in shards.shard_names(split):
            for _, members in shards.samples(name):
                assert np.isin(decode_condition(members).values, (2, 9)).any()
    assert list(verify_shards(str(tmp_path))) == []


def test_unlabelled_is_no_class(labelled: Path, make_data: MakeData) -> None:
    with pytest.raises(ValueError, match="label ids below num_classes"):
        mask_data(make_data, labelled, require_classes=[255])
    with pytest.raises(ValueError, match="with modality mask"):
        make_data(labelled / "images", require_classes=[1])


def test_a_subset_and_a_filter_apply_one_after_the_other(
    labelled: Path, tmp_path: Path, make_data: MakeData, shard_now: Shard
) -> None:
    data = mask_data(make_data, labelled, require_classes=[0], max_samples=9)
    shards = shard_now(data, tmp_path)
    rows = [row for row in shards.manifest.to_pylist() if row["split"] == "train"]
    assert len(rows) == 9, "nine were drawn"
    assert 0 < shards.num_samples("train") < 9, "and some of them filtered"
