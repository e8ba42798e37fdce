"""A claim in an object store is a conditional put: of many callers at once, one wins (moto speaks S3 over HTTP)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from piti import storage


def test_one_of_many_claims_an_attempt(bucket: str) -> None:
    uri = storage.join(bucket, "jobs", "piti-shard-1", "spec.json")
    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(lambda number: storage.create_bytes(uri, f"{number}".encode()), range(4)))
    assert sum(won) == 1
    assert storage.read_bytes(uri) == f"{won.index(True)}".encode()
    assert not storage.create_bytes(uri, b"late")
