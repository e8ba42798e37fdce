"""The cache of remote tars: bounded, checked, of one user, and no slow download holds up another."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from piti import storage
from piti.data import cache as caching
from piti.data.cache import ShardCache, cache_folder
from piti.errors import ConfigError, DataError


@pytest.fixture
def bucket() -> Iterator[str]:
    place = f"memory://{uuid.uuid4().hex}"
    yield place
    storage.remove(place)


def put(bucket: str, name: str, content: bytes) -> tuple[str, str, int]:
    """What `ShardCache.path` wants to know."""
    storage.write_bytes(f"{bucket}/{name}", content)
    return f"{bucket}/{name}", storage.sha256_bytes(content), len(content)


def files(folder: Path) -> int:
    return len(list(folder.iterdir()))


def test_a_file_is_fetched_once_and_again_when_its_content_changes(bucket: str, tmp_path: Path) -> None:
    cache, one = ShardCache(tmp_path), put(bucket, "a.tar", b"one")
    first = cache.path(*one)
    two = put(bucket, "a.tar", b"two")
    assert cache.path(*one) == first
    assert first.read_bytes() == b"one"
    assert cache.path(*two).read_bytes() == b"two"


def test_a_cached_file_that_was_cut_is_fetched_again(bucket: str, tmp_path: Path) -> None:
    cache, about = ShardCache(tmp_path), put(bucket, "a.tar", b"content")
    cache.path(*about).write_bytes(b"con")
    assert cache.path(*about).read_bytes() == b"content"


def test_a_download_that_came_short_is_tried_again(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about, real, cut = put(bucket, "a.tar", b"content"), storage.fetch, [3, 7, 3, 3]

    def fetch(uri: str, target: Path) -> Path:
        path = real(uri, target)
        path.write_bytes(path.read_bytes()[: cut.pop(0)])
        return path

    monkeypatch.setattr(storage, "fetch", fetch)
    assert ShardCache(tmp_path / "a").path(*about).read_bytes() == b"content"
    with pytest.raises(DataError, match=r"a\.tar has 3 bytes, its manifest says 7 - run `piti shards verify memory:"):
        ShardCache(tmp_path / "b").path(*about)
    assert files(tmp_path / "b") == 0


def test_other_bytes_of_the_right_size_are_left_to_the_samples_hashes(
    bucket: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri, _, size = put(bucket, "a.tar", b"content")
    with caplog.at_level(logging.WARNING, logger="piti"):
        assert ShardCache(tmp_path).path(uri, "0" * 64, size).read_bytes() == b"content"
    assert "a.tar has other bytes than were written" in caplog.text


def test_a_failed_download_leaves_nothing(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = put(bucket, "a.tar", b"content")

    def fail(self: Any, remote: str, local: str, **options: Any) -> None:
        Path(local).write_bytes(b"con")
        raise ConnectionResetError("gone")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "get_file", fail)
    with pytest.raises(ConnectionResetError):
        ShardCache(tmp_path).path(*about)
    assert files(tmp_path) == 0


def test_leftovers_count_and_are_deleted_once_they_are_old(bucket: str, tmp_path: Path) -> None:
    old, young = tmp_path / ".x.tar.1.tmp", tmp_path / ".y.tar.2.tmp"
    for path in (old, young):
        path.write_bytes(b"x" * 90)
    os.utime(old, (0, 0))
    cache = ShardCache(tmp_path, limit_bytes=100)
    first = cache.path(*put(bucket, "a.tar", b"a" * 20))
    second = cache.path(*put(bucket, "b.tar", b"b" * 20))
    assert not old.exists()
    assert young.exists()
    assert (first.exists(), second.exists()) == (False, True), "what is being downloaded takes its space"


def test_a_limit_of_zero_keeps_one_file(bucket: str, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, limit_bytes=0)
    for name in "abc":
        cache.path(*put(bucket, f"{name}.tar", name.encode()))
        assert files(tmp_path) == 1


def test_a_limit_that_is_no_number_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PITI_CACHE_BYTES", "20GB")
    with pytest.raises(ConfigError, match=r"PITI_CACHE_BYTES is '20GB': Input should be a valid integer"):
        ShardCache()


def test_a_slow_download_holds_up_only_those_that_want_it(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = put(bucket, "slow.tar", b"slow"), put(bucket, "quick.tar", b"quick")
    real, begun, go_on, fetched = storage.fetch, threading.Event(), threading.Event(), []

    def fetch(uri: str, target: Path) -> Path:
        fetched.append(uri)
        if uri == slow[0]:
            begun.set()
            assert go_on.wait(20)
        return real(uri, target)

    monkeypatch.setattr(storage, "fetch", fetch)
    cache = ShardCache(tmp_path)
    waiting = [threading.Thread(target=cache.path, args=slow) for _ in range(2)]
    for thread in waiting:
        thread.start()
    assert begun.wait(20)
    started = time.monotonic()
    cache.path(*quick)
    assert time.monotonic() - started < 10
    go_on.set()
    for thread in waiting:
        thread.join()
    assert sorted(fetched) == sorted([slow[0], quick[0]]), "the second that wanted it waited for the first"


def test_the_default_folder_is_this_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PITI_CACHE", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = cache_folder()
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    assert cache_folder().stat().st_mode & 0o777 == 0o700
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="is not a folder of this user"):
        cache_folder()
    monkeypatch.setattr(caching.os, "getuid", lambda: os.stat(tmp_path).st_uid + 1)
    (tmp_path / f"piti-cache-{os.getuid()}").mkdir()
    with pytest.raises(ConfigError, match="is not a folder of this user - set PITI_CACHE"):
        cache_folder()
