"""An S3-speaking server on loopback that now and then fails and dawdles: shard, verify and load through s3://."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import boto3
import fsspec
import numpy as np
import pytest
import s3fs
import torch
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from piti import storage
from piti.config import DataConfig
from piti.data.loader import TrainingLoader
from piti.data.sharding import plan_shards
from piti.data.shards import ShardSet
from piti.data.sources import open_source, retrying
from piti.data.sources.trees import open_tree
from piti.data.verify import verify_shards
from piti.errors import DataError


class Unreliable:
    """A WSGI application that answers every seventh request with 500, every eleventh late, and passes on the rest.

    Every `cut_every`th answer with more than a few bytes is cut off in the middle, every `stall_every`th request is
    left without an answer for `stall_seconds`, and those whose path holds `broken` fail each time (0, None: never).
    But for the last, whoever asks the same again after a fault is answered well, however the requests of several
    processes and their retries fall together.
    """

    cut_every = 0
    stall_every = 0
    stall_seconds = 1.2
    broken: str | None = None

    def __init__(self, application: Any) -> None:
        self._application = application
        self._lock = threading.Lock()
        self._owed: set[tuple[str, ...]] = set()  # good answers, by request
        self.active = False
        self.seen: Counter[str] = Counter()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        request = tuple(environ.get(part, "") for part in ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING", "HTTP_RANGE"))
        if self.broken is not None and self.broken in environ["PATH_INFO"]:
            return self._fail(environ, start_response)
        with self._lock:
            self.seen["requests"] += self.active
            number = self.seen["requests"]
            fails = self.active and number % 7 == 3
            stalls = self.active and self.stall_every > 0 and number % self.stall_every == 0
            if request in self._owed:
                self._owed.remove(request)
                return self._application(environ, start_response)  # type: ignore[no-any-return]
            if fails or stalls:
                self._owed.add(request)
        if fails:
            return self._fail(environ, start_response)
        if self.active and number % 11 == 5:
            self.seen["late"] += 1
            time.sleep(0.2)
        if stalls:
            self.seen["stalled"] += 1
            time.sleep(self.stall_seconds)
        answer: Iterable[bytes] = self._application(environ, start_response)
        if self.active and self.cut_every and environ["REQUEST_METHOD"] == "GET":
            return self._cut(request, b"".join(answer))
        return answer

    def _fail(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        self.seen["failed"] += 1
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response("500 Internal Server Error", [("Content-Type", "application/xml")])
        return [b"<Error><Code>InternalError</Code><Message>injected</Message></Error>"]

    def _cut(self, request: tuple[str, ...], body: bytes) -> Iterable[bytes]:
        """The header has promised all of it by now."""
        if len(body) < 1000:
            return [body]
        with self._lock:
            self.seen["long"] += 1
            is_cut = self.seen["long"] % self.cut_every == 0
            self.seen["cut"] += is_cut
            if is_cut:
                self._owed.add(request)
        return [body[: len(body) // 2]] if is_cut else [body]


class Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *arguments: Any) -> None:  # noqa: A002 - werkzeug's name
        """Requests are no news."""


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Unreliable]:
    """The server, with an empty bucket `bucket`; faults begin once `active` is set."""
    unreliable = Unreliable(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, unreliable, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    settings = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_DEFAULT_REGION": "us-east-1", "PITI_CACHE": str(tmp_path / "cache")}  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    open_tree.cache_clear()  # its trees know another server
    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket="bucket")
    yield unreliable
    client.close()
    s3fs.S3FileSystem.clear_instance_cache()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def impatient(s3: Unreliable, monkeypatch: pytest.MonkeyPatch) -> Unreliable:
    """The server, and clients that wait half a second for an answer, and try no more often than s3fs itself does."""
    client = {"config_kwargs": {"read_timeout": 0.5, "retries": {"max_attempts": 1}}}
    monkeypatch.setitem(fsspec.config.conf, "s3", client)
    monkeypatch.setattr(retrying, "_PAUSES_SECONDS", (0.01, 0.02))
    s3fs.S3FileSystem.clear_instance_cache()
    open_tree.cache_clear()
    return s3


def put_pictures(folder: Path, uri: str) -> None:
    for path in sorted(folder.rglob("*.*")):
        storage.write_bytes(f"{uri}/{path.relative_to(folder)}", path.read_bytes())


@pytest.mark.slow
def test_neither_cut_nor_missing_answers_change_anything(
    impatient: Unreliable, picture_folder: Path, sketch_data: DataConfig, sketch_set: ShardSet,
    sketch_companions: ShardSet, make_data: Callable[..., DataConfig], shard_now: Callable[..., ShardSet],
    degrade_now: Callable[..., ShardSet],
) -> None:  # fmt: skip
    """Shards, companions, and a training stream resumed in its middle, with two ranks, are those of a quiet disk."""
    put_pictures(picture_folder, "s3://bucket/pictures")
    impatient.active, impatient.cut_every, impatient.stall_every = True, 5, 30
    data = make_data("s3://bucket/pictures")
    assert open_source(data).problems() == []
    shards = shard_now(data, "s3://bucket/shards/abc")
    assert list(verify_shards(shards.uri)) == []
    companions = degrade_now(shards.uri, sketch_data, "s3://bucket/degraded/abc")
    for there, here in ((shards, sketch_set), (companions, sketch_companions)):
        assert {name: stats.tar_sha256 for name, stats in there.stats.items()} == {
            name: stats.tar_sha256 for name, stats in here.stats.items()
        }
        assert there.rejected() == []
    assert min(impatient.seen[fault] for fault in ("cut", "stalled", "late")) > 2

    def stream(images: ShardSet, low: ShardSet, start_sample: int, world_size: int, steps: int) -> list[dict[str, Any]]:
        found = []
        for rank in range(world_size):
            loader = TrainingLoader(
                images.uri, sketch_data, degraded=low.uri, scale=4, batch_size=8, rank=rank,
                world_size=world_size, num_workers=2, seed=1, start_sample=start_sample,
            )  # fmt: skip
            iterator = iter(loader)
            found.append(list(islice(iterator, steps)))
            iterator.close()  # type: ignore[attr-defined]
            assert loader.statistics["samples_skipped"] == 0
        return [batches[step] for step in range(steps) for batches in found]

    def joined(batches: list[dict[str, Any]], name: str) -> torch.Tensor:
        return torch.cat([batch[name] for batch in batches])

    undisturbed = stream(sketch_set, sketch_companions, 0, 1, 6)
    resumed = stream(shards, companions, 16, 2, 4)
    assert [key for batch in resumed for key in batch["keys"]] == [
        key for batch in undisturbed[2:] for key in batch["keys"]
    ]
    for name in ("image", "condition", "low_res"):
        assert torch.equal(joined(resumed, name), joined(undisturbed[2:], name))
    assert impatient.seen["failed"] > 5


def test_a_picture_that_the_server_cannot_give_is_not_rejected(
    impatient: Unreliable, picture_folder: Path, sketch_set: ShardSet, make_data: Callable[..., DataConfig],
    shard_now: Callable[..., ShardSet],
) -> None:  # fmt: skip
    put_pictures(picture_folder, "s3://bucket/pictures")
    data = make_data("s3://bucket/pictures")
    _, unlucky, *_ = plan_shards(open_source(data), data, seed=0)
    impatient.broken = unlucky.items[-1].origin
    with pytest.raises(
        DataError, match=r"cannot read .*(injected|Internal Server Error).* - run again: finished shards are kept"
    ):
        shard_now(data, "s3://bucket/broken/abc")
    assert impatient.seen["failed"] >= 3
    assert storage.list_names("s3://bucket/broken/abc/stats") == ["train-000000.parquet"]
    impatient.broken = None
    shards = shard_now(data, "s3://bucket/broken/abc")
    assert shards.rejected() == []
    for name, stats in sketch_set.stats.items():
        assert storage.sha256_file(shards.shard_uri(name)) == stats.tar_sha256


def test_damage_in_a_bucket_is_found(
    s3: Unreliable, sketch_data: DataConfig, shard_now: Callable[..., ShardSet]
) -> None:
    shards = shard_now(sketch_data, "s3://bucket/shards/abc")
    first, second = shards.shard_names("train")[:2]
    row = next(row for row in shards.manifest.to_pylist() if row["shard"] == first)
    content = bytearray(storage.read_bytes(shards.shard_uri(first)))
    content[row["offset"] + row["size"] // 2] ^= 1
    storage.write_bytes(shards.shard_uri(first), bytes(content))
    storage.remove(shards.shard_uri(second))
    s3.active = True
    problems = {(problem.shard, problem.key) for problem in verify_shards(shards.uri)}
    assert problems == {(first, row["key"]), (second, None)}


def test_archives_in_a_bucket_are_read_in_place(
    s3: Unreliable, picture_folder: Path, make_data: Callable[..., DataConfig], tmp_path: Path
) -> None:
    import shutil

    here = list(open_source(make_data(picture_folder)).items("train"))
    for kind in ("zip", "tar", "gztar"):
        packed = Path(shutil.make_archive(str(tmp_path / "pictures"), kind, picture_folder))
        storage.write_bytes(f"s3://bucket/{packed.name}", packed.read_bytes())
        s3.active = True
        there = list(open_source(make_data(f"s3://bucket/{packed.name}")).items("train"))
        assert [item.key for item in there] == [item.key for item in here]
        np.testing.assert_array_equal(there[5].load().image, here[5].load().image)
        s3.active = False


def test_a_bucket_is_listed_with_its_sizes_and_versions_or_said_to_be_empty(
    s3: Unreliable, make_data: Callable[..., DataConfig]
) -> None:
    with pytest.raises(DataError, match="no finished set of shards"):
        ShardSet("s3://bucket/nothing")
    assert "there is nothing at s3://bucket/nothing" in str(open_source(make_data("s3://bucket/nothing")).problems()[0])
    names = [f"{folder}/photo é {number}.jpg" for folder in ("a", "a b", "b") for number in range(5)]
    for number, name in enumerate(names):
        storage.write_bytes(f"s3://bucket/paged/{name}", b"x" * number)
    storage.write_bytes("s3://bucket/paged beside/c.jpg", b"x")
    s3.active = True
    listed = list(open_tree("s3://bucket/paged").entries())
    assert [entry.path for entry in listed] == sorted(names)
    assert [entry.size_bytes for entry in listed] == [names.index(entry.path) for entry in listed]
    assert all(entry.version for entry in listed)


def test_other_stores_are_listed_folder_by_folder() -> None:
    names = [f"{folder}/{number}.jpg" for folder in ("a", "a/b", "c") for number in range(3)]
    for name in (*names, ".hidden/x.jpg"):
        storage.write_bytes(f"memory://listed/{name}", b"x")
    assert [entry.path for entry in open_tree("memory://listed").entries()] == sorted(names)
    with pytest.raises(DataError, match="there is nothing at memory://listed/nowhere"):
        open_tree("memory://listed/nowhere").entries()
