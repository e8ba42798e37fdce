"""A claim in an object store is a conditional put: of many callers at once, one wins (moto speaks S3 over HTTP)."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from botocore.exceptions import ClientError
from s3fs import S3FileSystem
from s3fs.errors import translate_boto_error

from piti import storage


def test_one_of_many_claims_an_attempt(bucket: str) -> None:
    uri = storage.join(bucket, "jobs", "piti-shard-1", "spec.json")
    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(lambda number: storage.create_bytes(uri, f"{number}".encode()), range(4)))
    assert sum(won) == 1
    assert storage.read_bytes(uri) == f"{won.index(True)}".encode()
    assert not storage.create_bytes(uri, b"late")


@pytest.mark.parametrize(
    ("num_conflicts", "other", "outcome"),
    [(1, None, True), (1, b"theirs", False), (2, None, OSError)],
    ids=["one that went away", "one that won", "two"],
)
def test_a_claim_that_met_another_request_is_put_once_more(
    bucket: str, monkeypatch: pytest.MonkeyPatch, num_conflicts: int, other: bytes | None, outcome: bool | type[OSError]
) -> None:
    """S3 answers 409 where another request for the same object is under way, however that ends; s3fs has no word for it."""
    uri = storage.join(bucket, "jobs", "claim.json")
    conflict = {"Error": {"Code": "ConditionalRequestConflict", "Message": "A conflicting operation occurred."}}
    put: Callable[..., Any] = S3FileSystem.pipe_file
    puts = []

    def meet(fs: S3FileSystem, path: str, data: bytes, mode: str) -> Any:
        puts.append(mode)
        if len(puts) > num_conflicts:
            return put(fs, path, data, mode=mode)
        if other is not None:
            put(fs, path, other)
        raise translate_boto_error(ClientError(conflict, "PutObject"))  # type: ignore[arg-type]

    monkeypatch.setattr(S3FileSystem, "pipe_file", meet)
    if isinstance(outcome, bool):
        assert storage.create_bytes(uri, b"ours") == outcome
        assert storage.read_bytes(uri) == (other or b"ours")
        assert puts == ["create"] * (2 if outcome else 1)
    else:
        with pytest.raises(outcome, match="ConditionalRequestConflict"):
            storage.create_bytes(uri, b"ours")
        assert puts == ["create"] * 2
