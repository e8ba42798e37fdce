"""SIGKILL at any moment of sharding or degrading, ten times: running again gives the bytes of an undisturbed run."""

from __future__ import annotations

import hashlib
import multiprocessing
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from piti.config import DataConfig
from piti.data.shards import ShardSet, verify_shards

_NUM_KILLS = 10

# What the jobs do, without Ray: find what is there, make what is missing, then the manifest.
_SHARD = """
from piti.config import DataConfig
from piti.data.sharding import plan_shards, write_shard
from piti.data.shards import published_shards, remove_leftovers, write_manifest
from piti.data.sources import open_source
data = DataConfig.model_validate_json(data)
plans = plan_shards(open_source(data), data, seed=0)
remove_leftovers(uri)
finished = published_shards(uri, plans.digests)
for plan in plans:
    if plan.name not in finished:
        write_shard(plan, data, uri)
about = {name: getattr(data, name) for name in ("modality", "num_classes", "image_size", "geometry")}
write_manifest(uri, list(plans.digests), about)
"""
_DEGRADE = """
from piti.config import DataConfig, DegradationConfig
from piti.data.shards import ShardSet, published_shards, remove_leftovers, write_manifest
from piti.jobs.degrade import companion_plan, degrade_shard
data, shards = DataConfig.model_validate_json(data), ShardSet(source)
names = [name for split in shards.splits for name in shards.shard_names(split)]
plans = {name: companion_plan(shards.stats[name], {"scale": 4}) for name in names}
remove_leftovers(uri)
finished = published_shards(uri, plans)
for name in names:
    if name not in finished:
        degrade_shard(source, name, uri, plans[name], data, DegradationConfig(variants=3), 4, 0)
write_manifest(uri, names, {"scale": 4})
"""


def hashes(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def kill_until_done(code: str, arguments: dict[str, str], uri: Path, duration_seconds: float) -> list[int]:
    """Run `code` ten times, each killed somewhere in the first fifth of what is needed, then to its end.

    How many shards were done after each run. The processes are forked from one that has everything imported.
    """
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["piti.data.sharding", "piti.jobs.degrade"])
    chance, done = random.Random(4), []
    for number in range(_NUM_KILLS + 1):
        process = forks.Process(target=exec, args=(code, {**arguments, "uri": str(uri)}))
        process.start()
        if number < _NUM_KILLS:
            process.join(timeout=chance.uniform(0, 0.2) * duration_seconds)
            process.kill()
        process.join()
        done.append(len(list(uri.glob("stats/*.parquet"))))
    assert process.exitcode == 0
    return done


@pytest.mark.slow
def test_sharding_killed_and_run_again_equals_undisturbed(
    picture_folder: Path, make_data: Callable[..., DataConfig], shard_now: Callable[..., ShardSet], tmp_path: Path
) -> None:
    data = make_data(picture_folder, image_size=256, samples_per_shard=3)
    shard_now(make_data(picture_folder, max_samples=1), tmp_path / "first")  # what is loaded on first use
    started = time.monotonic()
    whole = shard_now(data, tmp_path / "undisturbed")
    broken = tmp_path / "killed"
    done = kill_until_done(_SHARD, {"data": data.model_dump_json()}, broken, time.monotonic() - started)
    assert done == sorted(done), "work done before a kill is kept"
    assert done[0] < done[-1]
    assert hashes(broken) == hashes(Path(whole.uri))
    assert list(verify_shards(str(broken))) == []


@pytest.mark.slow
def test_degrading_killed_and_run_again_equals_undisturbed(
    sketch_data: DataConfig, sketch_set: ShardSet, degrade_now: Callable[..., ShardSet], tmp_path: Path
) -> None:
    degrade_now(sketch_set.uri, sketch_data, tmp_path / "first")
    started = time.monotonic()
    whole = degrade_now(sketch_set.uri, sketch_data, tmp_path / "undisturbed")
    arguments = {"data": sketch_data.model_dump_json(), "source": sketch_set.uri}
    broken = tmp_path / "killed"
    # Each process compiles or loads L0 smoothing first, which the undisturbed run had done already.
    done = kill_until_done(_DEGRADE, arguments, broken, time.monotonic() - started + 1.0)
    assert done == sorted(done), "work done before a kill is kept"
    assert done[0] < done[-1]
    assert hashes(broken) == hashes(Path(whole.uri))
    assert list(verify_shards(str(broken))) == []
