"""Whatever is written where there is no space left: one clear error that names the place, and nothing left behind."""

from __future__ import annotations

import errno
import gzip
import io
import os
import re
import tarfile
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from piti import storage
from piti.config import DataConfig
from piti.data.cache import ShardCache
from piti.data.publishing import ShardWriter, adopt_shards, write_manifest
from piti.data.sharding import plan_shards, write_shard
from piti.data.shards import ShardSet
from piti.data.sources import open_source
from piti.errors import DataError


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
    """Opens /dev/full for writing, buffered, so that closing the file fails as well."""
    if "b" in mode and ("w" in mode or "x" in mode):
        open(path, mode).close()
        return open("/dev/full", "wb")
    return open(path, mode)


def test_a_manifest(sketch_data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = next(iter(plan_shards(open_source(sketch_data), sketch_data, seed=0)))
    write_shard(plan, sketch_data, str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr("piti.data.publishing.pq.ParquetWriter", no_space)
        with pytest.raises(DataError, match=re.escape(f"no space left for manifest.parquet in {tmp_path} - free some")):
            write_manifest(str(tmp_path), [plan.name], {})
    assert storage.list_names(str(tmp_path)) == ["stats", plan.name]


def test_a_tar_on_its_way_to_an_object_store_blames_the_local_folder(
    sketch_data: DataConfig, temporary: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = next(iter(plan_shards(open_source(sketch_data), sketch_data, seed=0)))
    monkeypatch.setattr("piti.data.tars.open", full_disk, raising=False)
    with pytest.raises(DataError, match=re.escape(f"no space left for {plan.name} in {temporary}")):
        write_shard(plan, sketch_data, memory)
    assert list(temporary.iterdir()) == []


def test_a_copy_from_an_earlier_set(
    sketch_set: ShardSet, temporary: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.core import url_to_fs

    fs, path = url_to_fs(f"{memory}/old")
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
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w"):
        pass
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(stream.getvalue()))
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
