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
        self._is_local = storage.is_local(uri)

    def __len__(self) -> int:
        return len(self.index)

    def read(self, sample: int) -> dict[str, bytes]:
        """Members of a sample: suffix to content. Raises DamagedSample; DataError where its tar is missing."""
        index = self.index
        offset, size = int(index.offset[sample]), int(index.size[sample])
        data = self._read_span(index.shards[int(index.shard[sample])], offset, size)
        if hashlib.sha256(data).digest() != index.sha256[sample]:
            raise DamagedSample(
                "bytes do not have the hash in the manifest" if len(data) == size else "tar is cut short"
            )
        try:
            return split_members(data, index.keys[sample])
        except ValueError as error:
            raise DamagedSample(str(error)) from error

    def _read_span(self, name: str, offset: int, size: int) -> bytes:
        uri = self.shards.shard_uri(name)
        for _ in range(3):  # another process may delete a cached file between its being found and being opened
            try:
                path = (
                    storage.local_path(uri)
                    if self._is_local
                    else self._cache.path(uri, self.shards.stats[name].tar_sha256)
                )
                with open(path, "rb") as stream:
                    stream.seek(offset)
                    return stream.read(size)
            except FileNotFoundError:
                continue
        raise DataError(f"{uri} is missing", "run `piti shards verify`, then piti/prepare again")
