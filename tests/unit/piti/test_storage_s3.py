"""A claim in an object store is a conditional put: of many callers at once, one wins (moto speaks S3 over HTTP)."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from piti import storage


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URI of an empty bucket."""
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir("claims")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield "s3://claims"
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


def test_one_of_many_claims_an_attempt(bucket: str) -> None:
    uri = storage.join(bucket, "jobs", "piti-shard-1", "spec.json")
    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(lambda number: storage.create_bytes(uri, f"{number}".encode()), range(4)))
    assert sum(won) == 1
    assert storage.read_bytes(uri) == f"{won.index(True)}".encode()
    assert not storage.create_bytes(uri, b"late")
