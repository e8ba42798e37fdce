"""Where there is no space left: one clear error that names the place, nothing half-written, and on once there is space."""

from __future__ import annotations

import errno
import io
import os
import re
import resource
import tarfile
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from piti import storage
from piti.config import DataConfig
from piti.config.presets import load_config
from piti.data.cache import ShardCache
from piti.data.manifest import MANIFEST, read_stats
from piti.data.publishing import ShardWriter, adopt_shards, write_manifest
from piti.data.sharding import plan_shards, write_shard
from piti.data.shards import ShardSet
from piti.data.sources import open_source
from piti.data.verify import verify_shards
from piti.errors import DataError
from piti.job import JobContext, JobSpec
from piti.jobs import degrade, shard
from piti.plan import Plan, Step


@pytest.fixture
def memory() -> Iterator[str]:
    place = f"memory://{uuid.uuid4().hex}"
    yield place
    storage.remove(place)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def no_space(*arguments: Any, **options: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_disk(path: Path, mode: str) -> io.IOBase:
    """Opens /dev/full for writing, which answers each flush with ENOSPC; buffered, so that closing it fails as well."""
    open(path, mode).close()
    return open("/dev/full", "wb")


@pytest.mark.parametrize("is_remote", [False, True], ids=["local", "remote"])
def test_a_tar(
    sketch_data: DataConfig, temporary: Path, memory: str, monkeypatch: pytest.MonkeyPatch, is_remote: bool
) -> None:
    """On its way to an object store, the local folder is to blame."""
    plan = next(iter(plan_shards(open_source(sketch_data), sketch_data, seed=0)))
    uri = memory if is_remote else str(temporary)
    with monkeypatch.context() as patch:
        patch.setattr("piti.data.publishing.open", full_disk, raising=False)
        with pytest.raises(DataError, match=re.escape(f"no space left for {plan.name} in {temporary} - free some")):
            write_shard(plan, sketch_data, uri)
    assert list(temporary.iterdir()) == storage.list_names(memory) == []
    write_shard(plan, sketch_data, uri)
    assert read_stats(uri, plan.name) is not None


def test_a_manifest(sketch_data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = next(iter(plan_shards(open_source(sketch_data), sketch_data, seed=0)))
    write_shard(plan, sketch_data, str(tmp_path))
    monkeypatch.setattr("piti.storage.os.fsync", no_space)
    with pytest.raises(DataError, match=re.escape(f"no space left for manifest.parquet in {tmp_path} - free some")):
        write_manifest(str(tmp_path), [plan.name], {})
    assert storage.list_names(str(tmp_path)) == ["stats", plan.name]


def test_a_copy_from_an_earlier_set(
    sketch_set: ShardSet, temporary: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs, path = storage.filesystem(f"{memory}/old")
    fs.put(sketch_set.uri, path, recursive=True)
    monkeypatch.setattr("piti.data.publishing.shutil.copyfileobj", no_space)
    name, stats = next(iter(sketch_set.stats.items()))
    with pytest.raises(DataError, match=re.escape(f"no space left for {name} in {temporary}")):
        adopt_shards(f"{memory}/new", {name: stats.plan})
    assert list(temporary.iterdir()) == []


def test_the_loaders_cache(memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(f"{memory}/a.tar", b"a")
    monkeypatch.setattr(type(storage.filesystem(memory)[0]), "get_file", no_space)
    with pytest.raises(DataError, match=re.escape(f"a.tar in {tmp_path} - free some space there")):
        ShardCache(tmp_path).path(f"{memory}/a.tar", "0", 1)
    assert list(tmp_path.iterdir()) == []


def test_an_archive_that_has_to_be_unpacked(
    tmp_path: Path, make_data: Callable[..., DataConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PITI_CACHE", str(tmp_path / "cache"))
    with tarfile.open(tmp_path / "a.tar.gz", mode="w:gz"):
        pass
    monkeypatch.setattr("piti.data.sources.archives.shutil.copyfileobj", no_space)
    with pytest.raises(DataError, match=re.escape(f"a.tar.gz in {tmp_path / 'cache' / 'archives'}")):
        list(open_source(make_data(tmp_path / "a.tar.gz")).items("train"))


def test_other_failures_stay_what_they_are() -> None:
    with pytest.raises(PermissionError), storage.disk_space("a", "/b"):
        raise PermissionError(errno.EACCES, "denied")


def test_what_killed_workers_left_in_the_temporary_folder_is_removed_once_it_is_old(
    temporary: Path, memory: str
) -> None:
    killed = ShardWriter(memory, "train-000007.tar", "plan")
    (left,) = temporary.iterdir()
    foreign = temporary / ".someone.tmp"
    foreign.write_bytes(b"")
    os.utime(foreign, (0, 0))
    with ShardWriter(memory, "train-000001.tar", "plan") as writer:
        assert left.exists(), "it may still be written"
        os.utime(left, (0, 0))
        writer.add("a", {"txt": b"x"}, source="a", width=1, height=1)
        writer.publish()
    with ShardWriter(memory, "train-000002.tar", "plan"):
        assert not left.exists()
    assert list(temporary.iterdir()) == [foreign]
    killed.__exit__(None, None, None)


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """The kernel lets files grow no further, so that a write fails midway, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("without_ray")
def test_jobs_damage_nothing_and_go_on_once_there_is_space(tmp_path: Path) -> None:
    """Shard, then degrade: broken off in the middle of tars, of records and of the manifest."""
    source = {"kind": "bundled", "train_crops": 24, "validation_crops": 4}
    data = {"source": source, "modality": "sketch", "image_size": 128, "samples_per_shard": 6}
    config = load_config("demo-sketch", {"root": str(tmp_path / "whole"), "data": data})
    for name, job in (("shard", shard), ("degrade", degrade)):
        step: Step = getattr(Plan(config), name)
        job.run(JobContext(JobSpec.for_step(step, config, str(tmp_path / name))))
        expected = contents(Path(step.output))
        output = tmp_path / f"{name}-again"
        spec = JobSpec.for_step(step, config, str(tmp_path / f"{name}-job")).model_copy(update={"output": str(output)})
        context = JobContext(spec)
        context.progress = lambda *_, **__: None  # type: ignore[method-assign]  # it writes, too
        records = max(len(content) for path, content in expected.items() if path.startswith("stats/"))
        tars = sorted(len(content) for path, content in expected.items() if path.endswith(".tar"))
        done_before = 0
        for limit in (records // 2, tars[0] - 1, tars[-1] // 2, tars[-1] - 1):
            with files_of_at_most(limit), pytest.raises(OSError, match="too large"):
                job.run(context)
            found = contents(output)
            assert found.items() <= expected.items(), "what is there is whole, and nothing half-written is left"
            assert MANIFEST not in found
            assert len(found) >= done_before, "what was finished stays"
            done_before = len(found)
        assert 0 < done_before < len(expected), "it went on from attempt to attempt"
        job.run(context)
        assert contents(output) == expected
        (output / MANIFEST).unlink()
        with files_of_at_most(len(expected[MANIFEST]) - 1), pytest.raises(OSError, match="too large"):
            job.run(context)
        assert contents(output) == {path: content for path, content in expected.items() if path != MANIFEST}
        job.run(context)
        assert list(verify_shards(str(output))) == []


def contents(folder: Path) -> dict[str, bytes]:
    """Of every file, hidden ones too."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
