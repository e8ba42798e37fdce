"""data.shard_megabytes: shards of a size in bytes, whose number seldom changes while a dataset grows."""

from __future__ import annotations

import os
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from flows.preflight import source_problems
from piti.config import DataConfig
from piti.config.presets import load_config
from piti.data.shard_sizes import num_shards, stored_bytes
from piti.data.sharding import plan_shards
from piti.data.shards import ShardSet
from piti.data.sources import open_source
from tests.unit.data.conftest import save

MakeData = Callable[..., DataConfig]
COUNT = 120


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, crops: list[np.ndarray]) -> Path:
    """Folders `images` and `labels`, each also as a zip and a tar, and WebDataset tars of both."""
    root = tmp_path_factory.mktemp("dataset")
    for number in range(COUNT):
        image = np.roll(crops[number % len(crops)], number, axis=1)
        save(root / "images" / f"{number:03d}.jpg", image)
        save(root / "labels" / f"{number:03d}.png", image[..., 0] // 16)
    for folder in ("images", "labels"):
        files = sorted((root / folder).iterdir())
        with zipfile.ZipFile(root / f"{folder}.zip", "w") as archive:
            for path in files:
                archive.write(path, f"{folder}/{path.name}")
        with tarfile.open(root / f"{folder}.tar", "w") as tar:
            for path in files:
                tar.add(path, path.name)
    with tarfile.open(root / "webdataset.tar", "w") as tar:
        for path in sorted((root / "images").iterdir()):
            tar.add(path, path.name)
            tar.add(root / "labels" / f"{path.stem}.png", f"{path.stem}.seg.png")
    return root


SOURCES = {
    "folder": {"kind": "paired", "images": "images", "conditions": "labels"},
    "zip": {"kind": "paired", "images": "images.zip/images", "conditions": "labels.zip/labels"},
    "tar": {"kind": "paired", "images": "images.tar", "conditions": "labels.tar"},
    "webdataset": {"kind": "webdataset", "train": "webdataset.tar", "condition": "seg.png"},
}


@pytest.mark.parametrize("kind", SOURCES)
def test_shards_have_about_the_size_asked_for(
    kind: str,
    dataset: Path,
    shard_now: Callable[..., ShardSet],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(dataset)
    settings = {"source": SOURCES[kind] | {"validation_share": 0.1}, "modality": "mask", "num_classes": 16}
    settings |= {"geometry": "random", "samples_per_shard": 1, "shard_megabytes": 0.2}
    shards = shard_now(DataConfig.model_validate(settings), tmp_path / "shards")
    sizes = [shards.stats[name].tar_bytes for name in shards.shard_names("train")]
    whole = shards.num_samples("train")
    assert 3 <= len(sizes) <= 8, "neither one sample a shard nor all in one"
    assert whole > 90
    assert 0.75 * 200_000 / 1.1 < np.mean(sizes) < 1.1 * 200_000


def test_one_more_picture_rewrites_one_shard(
    dataset: Path, make_data: MakeData, tmp_path: Path, crops: list[np.ndarray]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for path in (dataset / "images").iterdir():
        os.link(path, images / path.name)
    data = make_data(images, geometry="random", shard_megabytes=0.06, source={"validation_share": 0.02})
    before = plan_shards(open_source(data), data, 0).digests
    save(images / "one more.jpg", crops[0])
    after = plan_shards(open_source(data), data, 0).digests
    assert before.keys() == after.keys()
    assert len(before) > 5
    assert sum(after[name] != digest for name, digest in before.items()) == 1


def test_the_number_changes_eight_times_while_a_dataset_doubles(make_data: MakeData) -> None:
    data = make_data("images", geometry="random", shard_megabytes=100)
    counts = range(20_000, 40_001, 7)
    numbers = [num_shards(count, 100_000, data) for count in counts]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) <= 9
    for count, number in zip(counts, numbers, strict=True):
        each = count * stored_bytes(100_000, data) / number
        assert 88e6 <= each <= 100e6


def test_few_items_and_small_targets(make_data: MakeData) -> None:
    data = make_data("images", geometry="random", shard_megabytes=0.001)
    assert num_shards(1, 50_000, data) == 1
    assert num_shards(7, 50_000, data) == 7, "no more shards than items"
    huge = data.model_copy(update={"shard_megabytes": 1e9})
    assert num_shards(1_000_000, 50_000, huge) == 1


def test_pictures_that_shrink_are_counted_as_they_will_be_stored(
    dataset: Path, make_data: MakeData, shard_now: Callable[..., ShardSet], tmp_path: Path
) -> None:
    data = make_data(dataset / "images", geometry="squash", image_size=64, shard_megabytes=0.1)
    shards = shard_now(data, tmp_path)
    sizes = [shards.stats[name].tar_bytes for name in shards.shard_names("train")]
    assert len(sizes) > 2
    assert 0.05e6 < np.mean(sizes) < 0.2e6


def test_a_subset_counts_as_what_it_holds(dataset: Path, make_data: MakeData) -> None:
    data = make_data(dataset / "images", geometry="random", shard_megabytes=0.05)
    few = data.model_copy(update={"max_samples": 10})
    names = {
        which: plan_shards(open_source(config), config, 0).digests for which, config in (("all", data), ("few", few))
    }
    train = {which: sum(name.startswith("train") for name in found) for which, found in names.items()}
    assert train["few"] * 4 < train["all"]


def test_sizes_take_no_memory(tmp_path: Path, make_data: MakeData) -> None:
    def peak(count: int) -> int:
        folder = tmp_path / str(count)
        folder.mkdir()
        for number in range(count):
            (folder / f"{number}.jpg").write_bytes(b"x" * (number % 50))
        data = make_data(folder, geometry="random", shard_megabytes=count / 4 * 2.6e-3)  # four shards
        tracemalloc.start()
        plans = plan_shards(open_source(data), data, 0)
        allocated = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert 4 <= len(plans) <= 6
        return allocated

    peak(100)
    small, large = peak(1500), peak(6000)
    # four shards of 1,500 items hold more lines at a time than four of 375: 100 bytes each, for the one shard at hand
    assert large - small < 400 * 1500


@pytest.mark.parametrize("wrong", [0, -1, float("inf"), float("nan")])
def test_a_size_must_be_one(wrong: float, make_data: MakeData) -> None:
    with pytest.raises(ValidationError, match="shard_megabytes"):
        make_data("images", shard_megabytes=wrong)


def test_preflight_wants_a_shard_for_each_worker(dataset: Path, tmp_path: Path) -> None:
    overrides = {
        "root": str(tmp_path), "data.source": {"kind": "paired", "images": str(dataset / "images")},
        "data.shard_megabytes": 1000, "cluster.num_workers": 2,
    }  # fmt: skip
    problems = [problem for problem in source_problems(load_config("demo", overrides)) if "shards" in str(problem)]
    (problem,) = problems
    assert "in shards of 1000 MB make 1 shards, fewer than the 2 workers" in str(problem)
    assert "lower data.shard_megabytes" in str(problem)
