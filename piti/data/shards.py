"""A finished set of shards: what its manifest says, its samples in order, and its samples by number."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from piti import storage
from piti.data.cache import ShardCache
from piti.data.items import SPLITS
from piti.data.manifest import MANIFEST, ShardStats, read_table
from piti.data.tars import names_of, read_in_order, split_members
from piti.errors import DataError, repair_advice


class DamagedSample(Exception):  # noqa: N818 - an outcome of reading that is counted, not a failure of the program
    """A sample's bytes are not those that were written. `str()` is the reason."""


@contextmanager
def named_sample(shards: str, key: str) -> Iterator[None]:
    """Where every sample is needed: a damaged one becomes a DataError that names it and its set."""
    try:
        yield
    except DamagedSample as error:
        raise DataError(f"{shards}: sample {key} is damaged: {error}", repair_advice(shards)) from error


@dataclass(frozen=True)
class SampleIndex:
    """Where the samples of a split lie, in order; `shard` numbers index `shards`. `sha256` is uint8 (n, 32)."""

    shards: list[str]
    keys: list[str]
    shard: np.ndarray[Any, np.dtype[np.int32]]
    offset: np.ndarray[Any, np.dtype[np.int64]]
    size: np.ndarray[Any, np.dtype[np.int64]]
    sha256: np.ndarray[Any, np.dtype[np.uint8]]

    def __len__(self) -> int:
        return len(self.keys)


class ShardSet:
    """A finished set of shards at a URI. Only what its manifest lists counts.

    Raises DataError where there is no manifest, or it cannot be read.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        try:
            data = storage.read_bytes(storage.join(self.uri, MANIFEST))
            self.manifest: pa.Table = read_table(data)
            content = json.loads(self.manifest.schema.metadata[b"piti"])
        except FileNotFoundError as error:
            raise DataError(f"{uri} is no finished set of shards (no {MANIFEST})", "run piti/prepare") from error
        except (pa.ArrowInvalid, KeyError, TypeError, json.JSONDecodeError) as error:
            raise DataError(f"{uri}/{MANIFEST} is damaged ({error})", repair_advice(self.uri)) from error
        self.about: dict[str, Any] = content["about"]
        self.stats = {entry["name"]: ShardStats(**entry) for entry in content["shards"]}

    @property
    def holds_companions(self) -> bool:
        """Whether the samples are degraded variants of another set's pictures."""
        return "modality" not in self.about

    @property
    def splits(self) -> list[str]:
        """Splits with at least one sample."""
        present = set(pc.unique(self._accepted["split"]).to_pylist())
        return [split for split in SPLITS if split in present]

    def num_samples(self, split: str) -> int:
        return int(self._of(split).num_rows)

    def keys(self, split: str) -> list[str]:
        """Keys in the order of the tars."""
        return cast(list[str], self._of(split)["key"].to_pylist())

    def shard_names(self, split: str) -> list[str]:
        """Names of a split's tars, in order. A shard without samples has no tar."""
        return names_of([name for name, stats in self.stats.items() if stats.num_samples], split)

    def shard_uri(self, name: str) -> str:
        return storage.join(self.uri, name)

    def rejected(self) -> list[tuple[str, str]]:
        """(where it came from, reason) of each rejected item."""
        table = self.manifest.filter(pc.equal(self.manifest["status"], "rejected"))
        return list(zip(table["source"].to_pylist(), table["reason"].to_pylist(), strict=True))

    def index(self, split: str) -> SampleIndex:
        """Where the samples of a split lie, in the order of `keys`."""
        table = self._of(split)
        names = self.shard_names(split)
        numbers = {name: number for number, name in enumerate(names)}
        shard = np.array([numbers[name] for name in table["shard"].to_pylist()], dtype=np.int32)
        offset, size = (table[column].to_numpy().astype(np.int64) for column in ("offset", "size"))
        digests = np.frombuffer(bytes.fromhex("".join(table["sha256"].to_pylist())), dtype=np.uint8).reshape(-1, 32)
        return SampleIndex(names, table["key"].to_pylist(), shard, offset, size, digests)

    def samples(self, name: str) -> Iterator[tuple[str, dict[str, bytes]]]:
        """(key, members) of one shard, in order, each checked against its hash.

        Raises DataError where the tar is missing or a sample is damaged.
        """
        yield from read_in_order(self._whole_spans(name))

    def _whole_spans(self, name: str) -> Iterator[bytes]:
        for row, data in self.spans(name):
            if storage.sha256_bytes(data) != row["sha256"]:
                problem = f"sample {row['key']} in {self.shard_uri(name)} is damaged"
                raise DataError(problem, repair_advice(self.uri))
            yield data

    def spans(self, name: str) -> Iterator[tuple[dict[str, Any], bytes]]:
        """The manifest's row of each sample of one shard, in order, with the bytes that lie there now: fewer where the
        tar is cut off. See `manifest.SCHEMA`. Raises DataError where the tar is missing.
        """
        rows = self.manifest.filter(pc.equal(self.manifest["shard"], name)).to_pylist()
        try:
            with storage.open_read(self.shard_uri(name)) as stream:
                for row in rows:
                    stream.seek(row["offset"])
                    yield row, stream.read(row["size"])
        except FileNotFoundError as error:
            raise DataError(f"{self.shard_uri(name)} is missing", repair_advice(self.uri)) from error

    @cached_property
    def _accepted(self) -> pa.Table:
        return self.manifest.filter(pc.equal(self.manifest["status"], "accepted"))

    def _of(self, split: str) -> pa.Table:
        return self._accepted.filter(pc.equal(self._accepted["split"], split))


class ShardReader:
    """Reads samples of one split of a set of shards. Safe to use from many threads."""

    def __init__(self, uri: str, split: str) -> None:
        self.shards = ShardSet(uri)
        self.index: SampleIndex = self.shards.index(split)
        self._cache = None if storage.is_local(uri) else ShardCache()

    def __len__(self) -> int:
        return len(self.index)

    def read(self, sample: int) -> dict[str, bytes]:
        """Members of a sample: suffix to content. Raises DamagedSample; DataError where its tar is missing.

        Waits some minutes for a set that is out of reach as a whole, then raises AwayError.
        """
        index = self.index
        offset, size = int(index.offset[sample]), int(index.size[sample])
        data = self._read_span(index.shards[int(index.shard[sample])], offset, size)
        if hashlib.sha256(data).digest() != index.sha256[sample].tobytes():
            raise DamagedSample(
                "bytes do not have the hash in the manifest" if len(data) == size else "tar is cut short"
            )
        return split_members(data)

    def _read_span(self, name: str, offset: int, size: int) -> bytes:
        for _ in range(3):
            try:
                with open(self._path(name), "rb") as stream:
                    stream.seek(offset)
                    return stream.read(size)
            except FileNotFoundError:  # another process deleted a cached file, or the whole set is out of reach
                storage.wait_until_there(storage.join(self.shards.uri, MANIFEST))
        raise DataError(f"{self.shards.shard_uri(name)} is missing", repair_advice(self.shards.uri))

    def _path(self, name: str) -> Path:
        """The tar on this machine."""
        uri, stats = self.shards.shard_uri(name), self.shards.stats[name]
        if self._cache is None:
            return storage.local_path(uri)
        return self._cache.path(uri, stats.tar_sha256, stats.tar_bytes)
