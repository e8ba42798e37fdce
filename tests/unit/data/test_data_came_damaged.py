"""A picture that was damaged before it was stored: its hash is right, so decoding finds it, and nothing stops for it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from piti.config import DataConfig
from piti.data.decoding import num_variants
from piti.data.loader import TrainingLoader
from piti.data.publishing import ShardWriter, write_manifest
from piti.data.shards import ShardSet
from piti.data.verify import verify_shards
from tests.command_line import piti


@pytest.fixture
def damaged(sketch_set: ShardSet, tmp_path: Path) -> tuple[ShardSet, str]:
    """The set with the picture of one training sample replaced by other bytes before it was hashed; and that sample's key."""
    uri, victim = str(tmp_path / "shards"), sketch_set.keys("train")[3]
    for name, stats in sketch_set.stats.items():
        with ShardWriter(uri, name, stats.plan) as writer:
            for key, members in sketch_set.samples(name):
                picture = "png" if "png" in members else "jpg"
                content = {**members, picture: b"no picture"} if key == victim else members
                writer.add(key, content, source=key, width=64, height=64)
            writer.publish()
    write_manifest(uri, list(sketch_set.stats), sketch_set.about)
    return ShardSet(uri), victim


def test_decoding_names_it_and_hashing_does_not(damaged: tuple[ShardSet, str]) -> None:
    shards, victim = damaged
    assert list(verify_shards(shards.uri)) == []
    (problem,) = verify_shards(shards.uri, decode=True)
    assert (problem.key, problem.came_damaged) == (victim, True)
    assert "picture does not decode" in problem.what

    assert piti("shards", "verify", shards.uri).exit_code == 0
    answer = piti("shards", "verify", shards.uri, "--decode")
    assert answer.exit_code == 1
    assert f"sample {victim} came damaged" in " ".join(answer.output.split())
    assert "mend them in the dataset" in " ".join(answer.output.split())
    assert "use one at a time" in piti("shards", "verify", shards.uri, "--decode", "--repair").output


def test_training_skips_it_and_its_companion_has_no_variants(
    damaged: tuple[ShardSet, str], sketch_data: DataConfig, degrade_now: Callable[..., ShardSet], tmp_path: Path
) -> None:
    shards, victim = damaged
    companions = degrade_now(shards.uri, sketch_data, tmp_path / "companions")
    assert companions.keys("train") == shards.keys("train")
    variants = {key: num_variants(members) for name in companions.shard_names("train") for key, members in
                companions.samples(name)}  # fmt: skip
    assert variants == {key: 0 if key == victim else 3 for key in shards.keys("train")}
    loader = TrainingLoader(
        shards.uri, sketch_data, degraded=companions.uri, scale=4, batch_size=4, rank=0, world_size=1, num_workers=0,
        seed=3,
    )  # fmt: skip
    count = shards.num_samples("train") // 4
    batches = list(islice(loader, count))
    seen = [key for batch in batches for key in batch["keys"]]
    skipped = loader.statistics["skipped"]
    assert {entry["key"] for entry in skipped} <= {victim}
    assert victim not in seen
    assert len(seen) + len(skipped) == 4 * count
