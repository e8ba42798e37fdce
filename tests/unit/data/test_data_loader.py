"""The loader: every sample once an epoch, the same stream however it is read, and from any position on."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import fsspec
import numpy as np
import pytest
import torch

from piti.config import DataConfig
from piti.data.conditions import label_colors, unit_range
from piti.data.examples import ExampleReader
from piti.data.loader import TrainingLoader, validation_batches
from piti.data.shards import ShardSet
from piti.errors import DataError

Batch = dict[str, Any]


def load(shards: ShardSet, data: DataConfig, companions: ShardSet | None = None, **changes: int) -> TrainingLoader:
    settings = {"scale": 4, "batch_size": 4, "rank": 0, "world_size": 1, "num_workers": 0, "seed": 3, **changes}
    return TrainingLoader(shards.uri, data, degraded=None if companions is None else companions.uri, **settings)  # type: ignore[arg-type]


def take(loader: TrainingLoader, count: int) -> list[Batch]:
    iterator = iter(loader)
    batches = list(islice(iterator, count))
    iterator.close()  # type: ignore[attr-defined]
    return batches


def joined(batches: list[Batch]) -> Batch:
    """Batches put one after the other, without the places in each."""
    names = [name for name in batches[0] if name not in ("keys", "places")]
    together: Batch = {name: torch.cat([batch[name] for batch in batches]) for name in names}
    return {**together, "keys": [key for batch in batches for key in batch["keys"]]}


def stream(make: Callable[[int], TrainingLoader], world_size: int, steps: int) -> Batch:
    """The global stream that `world_size` ranks see together."""
    ranks = [take(make(rank), steps) for rank in range(world_size)]
    return joined([ranks[rank][step] for step in range(steps) for rank in range(world_size)])


def assert_same(first: Batch, second: Batch) -> None:
    assert first["keys"] == second["keys"]
    assert first.keys() == second.keys()
    for name in first:
        if name != "keys":
            assert torch.equal(first[name], second[name]), name


def test_batches_are_as_promised(sketch_set: ShardSet, sketch_data: DataConfig, sketch_companions: ShardSet) -> None:
    (batch,) = take(load(sketch_set, sketch_data, sketch_companions), 1)
    shapes = {"image": (4, 3, 64, 64), "condition": (4, 1, 64, 64), "low_res": (4, 3, 16, 16)}
    for name, shape in shapes.items():
        assert batch[name].shape == shape
        assert batch[name].dtype == torch.uint8
        seen = unit_range(batch[name])
        assert seen.dtype == torch.float32
        assert seen.is_contiguous()
        assert -1 <= seen.min() < seen.max() <= 1
    assert len(batch["keys"]) == 4
    assert "low_res" not in take(load(sketch_set, sketch_data), 1)[0]


@pytest.mark.parametrize("world_size", [1, 3])
def test_each_sample_once_an_epoch(sketch_set: ShardSet, sketch_data: DataConfig, world_size: int) -> None:
    count = sketch_set.num_samples("train")
    seen = stream(lambda rank: load(sketch_set, sketch_data, rank=rank, world_size=world_size), world_size, 40)["keys"]
    for epoch in range(2):
        assert Counter(seen[epoch * count : (epoch + 1) * count]) == Counter(sketch_set.keys("train"))
    assert seen[:count] != seen[count : 2 * count]


def test_the_order_is_mixed_and_follows_the_seed(sketch_set: ShardSet, sketch_data: DataConfig) -> None:
    def first(seed: int) -> list[str]:
        return joined(take(load(sketch_set, sketch_data, seed=seed), 5))["keys"]  # type: ignore[no-any-return]

    assert first(0) == first(0) != first(1)
    assert first(0) != sketch_set.keys("train")[:20]


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (1, 2), (2, 1), (3, 2), (5, 0)])
def test_resuming_on_any_number_of_ranks_continues_the_stream(
    sketch_set: ShardSet, sketch_data: DataConfig, sketch_companions: ShardSet, world_size: int, num_workers: int
) -> None:
    """Bit for bit, across the end of an epoch: 72 samples of the stream, and again from sample 24 on."""
    undisturbed = joined(take(load(sketch_set, sketch_data, sketch_companions, batch_size=12), 6))
    assert sketch_set.num_samples("train") < 60
    settings = {"batch_size": 12, "world_size": world_size, "num_workers": num_workers, "start_sample": 24}
    again = stream(lambda rank: load(sketch_set, sketch_data, sketch_companions, rank=rank, **settings), world_size, 4)
    assert_same(again, {name: value[24:] for name, value in undisturbed.items()})


def test_a_second_iterator_begins_again(sketch_set: ShardSet, sketch_data: DataConfig) -> None:
    loader = load(sketch_set, sketch_data, num_workers=2)
    assert_same(joined(take(loader, 3)), joined(take(loader, 3)))


def test_epochs_draw_flips_and_variants_anew(
    sketch_set: ShardSet, sketch_data: DataConfig, sketch_companions: ShardSet
) -> None:
    def versions(data: DataConfig, name: str) -> dict[str, set[bytes]]:
        batch = joined(take(load(sketch_set, data, sketch_companions), 100))
        found: dict[str, set[bytes]] = {}
        for key, value in zip(batch["keys"], batch[name], strict=True):
            found.setdefault(key, set()).add(value.numpy().tobytes())
        return found

    still = sketch_data.model_copy(update={"horizontal_flip": False})
    assert all(len(values) == 2 for values in versions(sketch_data, "image").values())
    assert all(len(values) == 1 for values in versions(still, "image").values())
    assert sum(len(values) == 3 for values in versions(still, "low_res").values()) > 30
    assert max(len(values) for values in versions(sketch_data, "low_res").values()) > 3


def colour_blocks(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture whose colours tell its labels, so that a shift between the two shows: labels and RGB."""
    labels = cv2.resize(rng.integers(0, 6, (4, 5)).astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    return labels, label_colors(6)[labels]


@pytest.fixture(scope="module")
def block_set(
    tmp_path_factory: pytest.TempPathFactory,
    make_data: Callable[..., DataConfig],
    shard_now: Callable[..., ShardSet],
    degrade_now: Callable[..., ShardSet],
) -> tuple[DataConfig, ShardSet, ShardSet]:
    rng, tmp_path = np.random.default_rng(0), tmp_path_factory.mktemp("blocks")
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for number in range(20):
        labels, image = colour_blocks(rng, int(rng.integers(100, 200)), int(rng.integers(100, 200)))
        cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        cv2.imwrite(str(tmp_path / "labels" / f"{number}.png"), labels)
    source = {"conditions": str(tmp_path / "labels")}
    data = make_data(tmp_path / "images", modality="mask", num_classes=6, geometry="random", source=source)
    shards = shard_now(data, tmp_path / "shards")
    return data, shards, degrade_now(shards.uri, data, tmp_path / "companions")


@pytest.mark.parametrize("with_companions", [False, True])
def test_picture_condition_and_low_resolution_show_the_same_region(
    block_set: tuple[DataConfig, ShardSet, ShardSet], with_companions: bool
) -> None:
    data, shards, companions = block_set
    batches = take(load(shards, data, companions if with_companions else None), 12)
    reader = ExampleReader(shards.uri, "validation", data, companions.uri if with_companions else None, 4)
    batches += validation_batches(reader, batch_size=4, limit=None)
    for levels in batches:
        batch = {name: unit_range(value) for name, value in levels.items() if name not in ("keys", "places")}
        same = (batch["image"] - batch["condition"]).abs().amax(dim=1) < 0.2
        assert same.float().mean(dim=(1, 2)).min() > 0.8, "all but the borders of blocks agree"
        if with_companions:
            small = torch.nn.functional.interpolate(batch["image"], scale_factor=0.25, mode="area")
            difference = (small - batch["low_res"]).abs().mean(dim=(1, 2, 3))
            other = (small.flip(3) - batch["low_res"]).abs().mean(dim=(1, 2, 3))
            assert (difference < other).all(), "closer than the mirrored picture, however blurred"
            assert difference.mean() < 0.5 * other.mean()


def test_validation_is_fixed_and_divided_among_ranks(
    sketch_set: ShardSet, sketch_data: DataConfig, sketch_companions: ShardSet
) -> None:
    reader = ExampleReader(sketch_set.uri, "validation", sketch_data, sketch_companions.uri, 4)

    def batches(**changes: Any) -> Iterator[Batch]:
        return validation_batches(reader, **{"batch_size": 2, "limit": None, **changes})

    whole = joined(list(batches()))
    assert whole["keys"] == sketch_set.keys("validation")
    assert_same(joined(list(batches(batch_size=3))), whole)
    ranks = [list(batches(rank=rank, world_size=2, batch_size=1)) for rank in range(2)]
    count = len(whole["keys"])
    together = joined([ranks[number % 2][number // 2] for number in range(count)])
    assert_same(together, whole)
    assert sum(len(batch["keys"]) for batch in batches(limit=3)) == 3


def flip_byte(shards: ShardSet, key: str) -> None:
    row = next(row for row in shards.manifest.to_pylist() if row["key"] == key)
    path = Path(shards.shard_uri(row["shard"]))
    data = bytearray(path.read_bytes())
    data[row["offset"] + 600] ^= 0x10
    path.write_bytes(data)


def copy_set(shards: ShardSet, target: Path) -> ShardSet:
    shutil.copytree(shards.uri, target)
    return ShardSet(str(target))


@contextmanager
def remote_copy(shards: ShardSet) -> Iterator[ShardSet]:
    """The set in an object store, for as long as the block runs."""
    memory = fsspec.filesystem("memory")
    memory.put(shards.uri, "/remote/shards", recursive=True)
    try:
        yield ShardSet("memory://remote/shards")
    finally:
        memory.rm("/remote", recursive=True)


@pytest.mark.parametrize(("num_workers", "where"), [(0, "companions"), (2, "shards")])
def test_a_flipped_byte_costs_one_sample_and_is_counted(
    sketch_set: ShardSet,
    sketch_data: DataConfig,
    sketch_companions: ShardSet,
    tmp_path: Path,
    num_workers: int,
    where: str,
) -> None:
    shards, companions = copy_set(sketch_set, tmp_path / "shards"), copy_set(sketch_companions, tmp_path / "companions")
    healthy = joined(take(load(sketch_set, sketch_data, sketch_companions), 8))
    victim = healthy["keys"][9]
    flip_byte(shards if where == "shards" else companions, victim)
    loader = load(shards, sketch_data, companions, num_workers=num_workers)
    batches = take(loader, 8)
    assert [len(batch["keys"]) for batch in batches] == [4, 4, 3, 4, 4, 4, 4, 4]
    assert [batch["places"] for batch in batches[1:3]] == [[0, 1, 2, 3], [0, 2, 3]]
    ranks = [take(load(shards, sketch_data, companions, rank=rank, world_size=2), 3)[2] for rank in (0, 1)]
    assert [batch["places"] for batch in ranks] == [[0], [0, 1]], "positions within a rank's part"
    rest = [place for place, key in enumerate(healthy["keys"]) if key != victim]
    kept = {name: value[rest] for name, value in healthy.items() if name != "keys"}
    assert_same(joined(batches), {**kept, "keys": [healthy["keys"][place] for place in rest]})
    assert loader.statistics["samples_skipped"] == 1
    assert loader.statistics["samples_read"] == 31
    assert loader.statistics["skipped"][0]["key"] == victim
    assert "hash" in loader.statistics["skipped"][0]["reason"]


def test_a_wholly_damaged_batch_gets_one_stand_in(
    sketch_set: ShardSet, sketch_data: DataConfig, tmp_path: Path
) -> None:
    shards = copy_set(sketch_set, tmp_path / "shards")
    healthy = joined(take(load(sketch_set, sketch_data, batch_size=1), 4))
    flip_byte(shards, healthy["keys"][1])
    loader = load(shards, sketch_data, batch_size=1)
    places = [0, 2, 2, 3]
    expected = {name: value[places] for name, value in healthy.items() if name != "keys"}
    assert_same(joined(take(loader, 4)), {**expected, "keys": [healthy["keys"][place] for place in places]})
    assert loader.statistics["samples_substituted"] == 1


def test_sets_that_do_not_fit_are_refused(
    sketch_set: ShardSet,
    sketch_data: DataConfig,
    sketch_companions: ShardSet,
    block_set: tuple[DataConfig, ShardSet, ShardSet],
) -> None:
    with pytest.raises(DataError, match="does not hold the same samples"):
        load(sketch_set, sketch_data, block_set[2])
    with pytest.raises(DataError, match="scale 4, the config says 2"):
        load(sketch_set, sketch_data, sketch_companions, scale=2)
    with pytest.raises(DataError, match="image_size 64, the config says 32"):
        load(sketch_set, sketch_data.model_copy(update={"image_size": 32}))
    with pytest.raises(ValueError, match="do not fit together"):
        load(sketch_set, sketch_data, rank=2, world_size=2)


def test_a_missing_tar_is_an_error_not_a_skip(sketch_set: ShardSet, sketch_data: DataConfig, tmp_path: Path) -> None:
    shards = copy_set(sketch_set, tmp_path / "shards")
    Path(shards.shard_uri(shards.shard_names("train")[0])).unlink()
    for num_workers in (0, 2):
        with pytest.raises(DataError, match="is missing"):
            take(load(shards, sketch_data, num_workers=num_workers), 20)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_remote_tar_of_another_size_is_an_error_not_a_skip(
    sketch_set: ShardSet, sketch_data: DataConfig, tmp_path: Path, num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = copy_set(sketch_set, tmp_path / "shards")
    tar = Path(shards.shard_uri(shards.shard_names("train")[0]))
    tar.write_bytes(tar.read_bytes()[:-512])
    monkeypatch.setenv("PITI_CACHE", str(tmp_path / "cache"))
    with remote_copy(shards) as remote, pytest.raises(DataError, match=f"{tar.name} has .* bytes, its manifest says"):
        take(load(remote, sketch_data, num_workers=num_workers), 20)


def test_a_set_that_is_away_for_a_moment_is_waited_for(
    sketch_set: ShardSet, sketch_data: DataConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As when a network mount drops out: the same samples in the same order, and no error."""
    shards = copy_set(sketch_set, tmp_path / "mount" / "shards")
    loader = load(shards, sketch_data)
    (tmp_path / "mount").rename(tmp_path / "away")
    back = threading.Timer(0.5, (tmp_path / "away").rename, [tmp_path / "mount"])
    back.start()
    found = joined(take(loader, 20))
    back.join()
    expected = joined(take(load(sketch_set, sketch_data), 20))
    assert found["keys"] == expected["keys"]
    torch.testing.assert_close(found["image"], expected["image"], rtol=0, atol=0)
    assert "does not answer (it is not there); waiting for it" in caplog.text


def test_a_mistake_in_the_program_is_no_damage(
    sketch_set: ShardSet, sketch_data: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistaken(*arguments: Any) -> None:
        raise ValueError("masks need num_classes")

    monkeypatch.setattr("piti.data.examples.paint_condition", mistaken)
    with pytest.raises(ValueError, match="masks need num_classes"):
        take(load(sketch_set, sketch_data), 1)
    with pytest.raises(ValueError, match="masks need num_classes"):
        next(
            validation_batches(ExampleReader(sketch_set.uri, "validation", sketch_data, None, 4), batch_size=2, limit=4)
        )


def test_remote_shards_come_through_a_bounded_cache(
    sketch_set: ShardSet, sketch_data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = max(stats.tar_bytes for stats in sketch_set.stats.values())
    monkeypatch.setenv("PITI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PITI_CACHE_BYTES", str(2 * largest))
    with remote_copy(sketch_set) as remote:
        far = joined(take(load(remote, sketch_data, num_workers=2), 10))
    assert_same(far, joined(take(load(sketch_set, sketch_data), 10)))
    cached = list((tmp_path / "cache").iterdir())
    assert 1 <= len(cached) <= 3
    assert sum(path.stat().st_size for path in cached) <= 2 * largest + largest
