"""Which items make up a shard, and how items are read for it: in order, several at once where a server is asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from piti.config import DataConfig
from piti.data.items import Item, LoadedItem
from piti.data.sharding import ShardPlan, plan_shards, write_shard
from piti.data.shards import ShardSet
from piti.data.sources import open_source
from piti.errors import DataError

MakeData = Callable[..., DataConfig]


@dataclass(frozen=True)
class Named:
    """An item that is nothing but its name."""

    key: str
    identity: str


class Names:
    """A source of items whose content never changes."""

    def __init__(self, num_train: int) -> None:
        self._num_train = num_train

    def items(self, split: str) -> list[Named]:
        return [Named(f"{split}-{number}", "as ever") for number in range(self._num_train if split == "train" else 3)]


def digests(num_train: int, **settings: object) -> dict[str, str]:
    source = {"kind": "bundled"}
    data = DataConfig.model_validate({"source": source, "modality": "sketch", "samples_per_shard": 8, **settings})
    return plan_shards(Names(num_train), data, seed=3).digests  # type: ignore[arg-type]


def test_plans_do_not_change_by_accident() -> None:
    """Where they change, all shards are written anew: only together with a format version, then store new values here."""
    assert digests(20) == PLANS
    assert digests(20, max_samples=5) == FEW_PLANS


PLANS = {
    "train-000000.tar": "d4e6787c5a0f5cf85079f790f26890b0b0d9856cdab62ed805e6fd273467cf21",
    "train-000001.tar": "23be0af1169fad454bb3beb5512043e37ee997b6dd268dc4a5d8e39099189198",
    "train-000002.tar": "fc6448b120bc4b3b226074d45c492b9b53035ef7d99d3b108ac3b0fda02893a6",
    "validation-000000.tar": "74f54adcf09d8061fd585329220c4e874c0a393b213d7ed7371b12aded9ec8ff",
}
FEW_PLANS = {
    "train-000000.tar": "b3cf37a174bceffc2ab6b7aab06e5efaa821b93116326a51a708ed934d8bf37b",
    "validation-000000.tar": "74f54adcf09d8061fd585329220c4e874c0a393b213d7ed7371b12aded9ec8ff",
}


def test_a_plan_follows_from_the_source_the_settings_and_the_seed(sketch_data: DataConfig) -> None:
    plans = plan_shards(open_source(sketch_data), sketch_data, seed=0)
    assert plans == plan_shards(open_source(sketch_data), sketch_data, seed=0)
    assert [plan.name for plan in plans] == list(plans.digests)
    assert sum(len(plan.items) for plan in plans) == sum(plans.num_items.values()) == 41
    assert digests(20) == digests(20, max_samples=20) != digests(20, image_size=128)


def test_one_item_more_changes_one_shard() -> None:
    for count in (33, 100, 1000):
        before, after = digests(count, samples_per_shard=64), digests(count + 1, samples_per_shard=64)
        assert before.keys() == after.keys()
        assert sum(before[name] != after[name] for name in before) == 1


def test_every_item_is_in_one_shard_and_shards_are_of_about_the_size_that_is_asked_for() -> None:
    source = {"kind": "bundled"}
    data = DataConfig.model_validate({"source": source, "modality": "sketch", "samples_per_shard": 1000})
    plans = plan_shards(Names(20_000), data, seed=3)  # type: ignore[arg-type]
    keys = [item.key for plan in plans for item in plan.items]
    assert sorted(keys) == sorted(item.key for split in ("train", "validation") for item in Names(20_000).items(split))
    sizes = [len(plan.items) for plan in plans if plan.split == "train"]
    assert len(sizes) == 20
    assert 900 < min(sizes) < max(sizes) < 1100  # three standard deviations of a thousand


def test_few_shot_subset_is_seeded_and_leaves_validation_alone(sketch_data: DataConfig) -> None:
    few = sketch_data.model_copy(update={"max_samples": 7})

    def keys(data: DataConfig, seed: int, split: str) -> set[str]:
        plans = plan_shards(open_source(data), data, seed)
        return {item.key for plan in plans if plan.split == split for item in plan.items}

    assert len(keys(few, 0, "train")) == 7
    assert keys(few, 0, "train") == keys(few, 0, "train") != keys(few, 1, "train")
    assert keys(few, 0, "train") < keys(sketch_data, 0, "train")
    assert keys(few, 0, "validation") == keys(sketch_data, 0, "validation")
    assert plan_shards(open_source(few), few, seed=0).num_not_drawn == len(keys(sketch_data, 0, "train")) - 7


def test_an_empty_split_is_an_error(tmp_path: Path, photograph: np.ndarray, make_data: MakeData) -> None:
    Image.fromarray(photograph[:64, :64]).save(tmp_path / "only.png")
    data = make_data(tmp_path)
    with pytest.raises(DataError, match="no items for the validation split"):
        plan_shards(open_source(data), data, seed=0)


@dataclass(frozen=True)
class Late:
    """An item that takes its time to load, or fails for a reason that is not its own."""

    item: Item
    seconds: float
    fails: bool
    is_remote: bool

    @property
    def key(self) -> str:
        return self.item.key

    @property
    def origin(self) -> str:
        return self.item.origin

    def load(self) -> LoadedItem:
        time.sleep(self.seconds)
        if self.fails:
            raise DataError("the server is away", "wait")
        return self.item.load()


def late(plan: ShardPlan, failing: int | None = None, is_remote: bool = False) -> ShardPlan:
    """The same plan, whose items are ready in another order than theirs."""
    items = [
        Late(item, 0.02 * (3 - number % 4), number == failing, is_remote) for number, item in enumerate(plan.items)
    ]
    return replace(plan, items=items)


@pytest.mark.parametrize("is_remote", [False, True], ids=["local", "remote"])
def test_items_are_stored_in_order_whenever_they_are_ready(
    sketch_data: DataConfig, sketch_set: ShardSet, tmp_path: Path, is_remote: bool
) -> None:
    first = next(iter(plan_shards(open_source(sketch_data), sketch_data, seed=0)))
    assert len(first.items) > 5
    found = write_shard(late(first, is_remote=is_remote), sketch_data, str(tmp_path / "late"))
    assert found.tar_sha256 == sketch_set.stats[first.name].tar_sha256
    with pytest.raises(DataError, match="the server is away"):
        write_shard(late(first, failing=3, is_remote=is_remote), sketch_data, str(tmp_path / "failed"))
    assert not list((tmp_path / "failed").rglob("*.tar"))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("piti-reader")]


@dataclass(frozen=True)
class Meeting:
    """An item of a server that loads once others are being loaded, too."""

    item: Item
    others: threading.Barrier
    is_remote: bool = True

    @property
    def key(self) -> str:
        return self.item.key

    @property
    def origin(self) -> str:
        return self.item.origin

    def load(self) -> LoadedItem:
        self.others.wait(timeout=60)
        return self.item.load()


def test_a_server_is_asked_for_several_items_at_once(sketch_data: DataConfig, tmp_path: Path) -> None:
    plan = next(iter(plan_shards(open_source(sketch_data), sketch_data, seed=0)))
    together = threading.Barrier(4)
    first, *others = plan.items
    items = [first, *(Meeting(item, together) for item in others[:4])]
    assert write_shard(replace(plan, items=items), sketch_data, str(tmp_path)).num_samples == 5
