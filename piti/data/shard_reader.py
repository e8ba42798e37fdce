"""Samples of a set of shards by number, checked against their hash; remote tars through a bounded local cache."""

from __future__ import annotations

import hashlib

from piti import storage
from piti.data.cache import ShardCache
from piti.data.repair import repair_advice
from piti.data.shards import SampleIndex, ShardSet
from piti.data.tars import split_members
from piti.errors import DataError


class DamagedSample(Exception):  # noqa: N818 - an outcome of reading that is counted, not a failure of the program
    """A sample's bytes are not those that were written. `str()` is the reason."""


class ShardReader:
    """Reads samples of one split of a set of shards. Safe to use from many threads."""

    def __init__(self, uri: str, split: str, cache: ShardCache | None = None) -> None:
        self.shards = ShardSet(uri)
        self.index: SampleIndex = self.shards.index(split)
        self._cache = cache or ShardCache()
        self._paths: dict[str, str] = {}
        if storage.is_local(uri):
            self._paths = {name: str(storage.local_path(self.shards.shard_uri(name))) for name in self.index.shards}

    def __len__(self) -> int:
        return len(self.index)

    def read(self, sample: int) -> dict[str, bytes]:
        """Members of a sample: suffix to content. Raises DamagedSample; DataError where its tar is missing."""
        index = self.index
        offset, size = int(index.offset[sample]), int(index.size[sample])
        data = self._read_span(index.shards[int(index.shard[sample])], offset, size)
        if hashlib.sha256(data).digest() != index.sha256[sample].tobytes():
            raise DamagedSample(
                "bytes do not have the hash in the manifest" if len(data) == size else "tar is cut short"
            )
        try:
            return split_members(data, index.keys[sample])
        except ValueError as error:
            raise DamagedSample(str(error)) from error

    def _read_span(self, name: str, offset: int, size: int) -> bytes:
        for _ in range(3):  # another process may delete a cached file between its being found and being opened
            try:
                return _read_part(self._path(name), offset, size)
            except FileNotFoundError:
                continue
        raise DataError(f"{self.shards.shard_uri(name)} is missing", repair_advice(self.shards.uri))

    def _path(self, name: str) -> str:
        if name in self._paths:
            return self._paths[name]
        stats = self.shards.stats[name]
        return str(self._cache.path(self.shards.shard_uri(name), stats.tar_sha256, stats.tar_bytes))


def _read_part(path: str, offset: int, size: int) -> bytes:
    """Part of a local file, shorter where the file ends before. Raises OSError."""
    with open(path, "rb", buffering=0) as stream:
        stream.seek(offset)
        data = stream.read(size)
        while len(data) < size and (more := stream.read(size - len(data))):
            data += more
        return data
