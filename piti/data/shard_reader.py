"""Samples of a set of shards by number, checked against their hash; remote tars through a bounded local cache."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from pathlib import Path

from piti import storage
from piti.data.shards import SampleIndex, ShardSet
from piti.data.tars import split_members
from piti.errors import DataError

CACHE_FOLDER_VARIABLE = "PITI_CACHE"
CACHE_BYTES_VARIABLE = "PITI_CACHE_BYTES"
_DEFAULT_CACHE_BYTES = 20 << 30


class DamagedSample(Exception):  # noqa: N818 - an outcome of reading that is counted, not a failure of the program
    """A sample's bytes are not those that were written. `str()` is the reason."""


class ShardCache:
    """Whole files of an object store on local disk, the least recently used deleted first.

    Shared by all processes of a machine: files appear whole, and one that another process deletes is fetched again.
    `limit_bytes` may be passed by the one file that is being fetched.
    """

    def __init__(self, folder: Path | None = None, limit_bytes: int | None = None) -> None:
        default = Path(tempfile.gettempdir()) / f"piti-cache-{os.getuid()}"
        self._folder = folder or Path(os.environ.get(CACHE_FOLDER_VARIABLE, default))
        self._limit_bytes = limit_bytes or int(os.environ.get(CACHE_BYTES_VARIABLE, _DEFAULT_CACHE_BYTES))
        self._lock = threading.Lock()

    def path(self, uri: str, version: str) -> Path:
        """A local copy of `uri`, whose content `version` names (its hash). Raises FileNotFoundError if it is gone."""
        target = self._folder / f"{hashlib.sha256(f'{uri}|{version}'.encode()).hexdigest()[:32]}.tar"
        with self._lock:
            if target.exists():
                os.utime(target)
                return target
            self._folder.mkdir(parents=True, exist_ok=True)
            storage.fetch(uri, target)
            self._evict(target)
            return target

    def _evict(self, keep: Path) -> None:
        files = []
        for path in self._folder.glob("*.tar"):
            try:
                files.append((path.stat().st_mtime, path.stat().st_size, path))
            except FileNotFoundError:  # deleted by another process
                continue
        used = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if used <= self._limit_bytes:
                break
            if path != keep:
                path.unlink(missing_ok=True)
                used -= size


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
        raise DataError(
            f"{self.shards.shard_uri(name)} is missing", "run `piti shards verify`, then piti/prepare again"
        )

    def _path(self, name: str) -> str:
        if name in self._paths:
            return self._paths[name]
        return str(self._cache.path(self.shards.shard_uri(name), self.shards.stats[name].tar_sha256))


def _read_part(path: str, offset: int, size: int) -> bytes:
    """Part of a local file, shorter where the file ends before. Raises OSError."""
    with open(path, "rb", buffering=0) as stream:
        stream.seek(offset)
        data = stream.read(size)
        while len(data) < size and (more := stream.read(size - len(data))):
            data += more
        return data
