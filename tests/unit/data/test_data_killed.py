"""SIGKILL at any moment of sharding: running again gives the bytes of an undisturbed run."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from piti.config import DataConfig
from piti.data.shards import ShardSet, verify_shards

_SHARD_WHAT_IS_MISSING = """
import sys
from piti.config import DataConfig
from piti.data.sharding import plan_shards, write_shard
from piti.data.shards import published_shards, remove_leftovers, write_manifest
from piti.data.sources import open_source
data, uri = DataConfig.model_validate_json(sys.argv[1]), sys.argv[2]
plans = plan_shards(open_source(data), data, seed=0)
remove_leftovers(uri)
finished = published_shards(uri, {plan.name: plan.plan for plan in plans})
print("ready", len(finished), flush=True)
for plan in plans:
    if plan.name not in finished:
        write_shard(plan, data, uri)
about = {name: getattr(data, name) for name in ("modality", "num_classes", "image_size", "geometry")}
write_manifest(uri, [plan.name for plan in plans], about)
"""


def start(data: DataConfig, uri: Path) -> tuple[subprocess.Popen[str], int]:
    """The process once it begins to write, and how many shards it found done."""
    command = [sys.executable, "-c", _SHARD_WHAT_IS_MISSING, data.model_dump_json(), str(uri)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline().split()[1])


def hashes(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.mark.slow
def test_killed_and_run_again_equals_undisturbed(
    picture_folder: Path, make_data: Callable[..., DataConfig], shard_now: Callable[..., ShardSet], tmp_path: Path
) -> None:
    data = make_data(picture_folder, image_size=512, samples_per_shard=3)  # large pictures, so that it takes a while
    started = time.monotonic()
    whole = shard_now(data, tmp_path / "undisturbed")
    duration_seconds = time.monotonic() - started
    broken, done = tmp_path / "killed", []
    chance = random.Random(4)
    for _ in range(3):
        process, already = start(data, broken)
        done.append(already)
        time.sleep(chance.uniform(0.05, 0.4) * duration_seconds)
        process.kill()
        process.communicate()
    process, already = start(data, broken)
    process.communicate()
    assert process.returncode == 0
    assert [*done, already] == sorted([*done, already])
    assert already > 0, "work done before the kills is kept"
    assert hashes(broken) == hashes(Path(whole.uri))
    assert list(verify_shards(str(broken))) == []
