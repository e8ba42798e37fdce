"""WebDataset tars whose bytes follow from their content alone, and the samples in them by offset.

The webdataset package writes them and reads them in order; a sample by its offset is read by `split_members`.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import IO, BinaryIO

from webdataset import TarWriter
from webdataset.tariterators import group_by_keys, tar_file_expander

_CHUNK_BYTES = 1 << 20
_MODE = 0o644


@dataclass(frozen=True)
class Span:
    """Where a sample lies in its tar: headers and contents of its members, next to each other."""

    offset: int
    size_bytes: int
    sha256: str


class SpanHashes:
    """sha256 of each stretch of a stream. `ends`: where the stretches end, in bytes from the beginning, in order.

    An end may be added while the stream passes, as long as no byte beyond that end has passed. `found` holds the hex
    hashes of the stretches that have passed whole.
    """

    def __init__(self, ends: Iterable[int] = ()) -> None:
        self._ends = deque(ends)
        self._passed_bytes = 0
        self._digest = hashlib.sha256()
        self.found: list[str] = []

    def add_end(self, end: int) -> None:
        self._ends.append(end)

    def update(self, data: bytes) -> None:
        """The next bytes of the stream."""
        rest = memoryview(data)
        while self._ends and self._passed_bytes + len(rest) >= self._ends[0]:
            cut = self._ends.popleft() - self._passed_bytes
            self._digest.update(rest[:cut])
            self.found.append(self._digest.hexdigest())
            self._digest = hashlib.sha256()
            self._passed_bytes, rest = self._passed_bytes + cut, rest[cut:]
        self._digest.update(rest)
        self._passed_bytes += len(rest)


class _HashedFile:
    """What a tar is written to: a file, its size and hash, and the hashes of its samples. Once given up, nothing."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.num_bytes = 0
        self.digest = hashlib.sha256()
        self.samples = SpanHashes()
        self.is_given_up = False

    def write(self, data: bytes) -> None:
        if self.is_given_up:
            return
        self._file.write(data)
        self.digest.update(data)
        self.samples.update(data)
        self.num_bytes += len(data)


class SampleTarWriter:
    """Writes samples to a local tar file. Owner, mode and time are fixed, so equal samples give equal bytes."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "xb")  # noqa: SIM115 - closed by __exit__
        self._hashed = _HashedFile(self._file)
        self._tar = TarWriter(self._hashed, user="", group="", mode=_MODE, mtime=0, encoder=False, compress=False)
        self._edges = [0]  # where samples begin and end

    def __enter__(self) -> SampleTarWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hashed.is_given_up = True  # after an error, what tarfile still buffers is dropped
        self._tar.close()
        self._file.close()

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Append a sample; `members` maps a suffix without its leading dot (`cond.png`) to content.

        Members are stored in the order of their suffixes. Raises ValueError for a key that readers would split
        elsewhere, and for a name that is too long for a plain tar header.
        """
        if not key or "." in key or "/" in key or len(key) > 80:
            raise ValueError(f"{key!r} cannot be a sample's key")
        for suffix in members:
            if len(f"{key}.{suffix}") > tarfile.LENGTH_NAME:
                raise ValueError(f"{key}.{suffix} is too long for a tar header")
        self._tar.write({"__key__": key, **members})
        self._edges.append(self._tar.tarstream.offset)
        self._hashed.samples.add_end(self._edges[-1])

    def finish(self) -> tuple[int, str, list[Span]]:
        """End the archive. Its size in bytes, its sha256, and where each sample lies, in the order of `add`."""
        self._tar.close()
        self._file.flush()
        samples = zip(pairwise(self._edges), self._hashed.samples.found, strict=True)
        spans = [Span(begin, end - begin, sha256) for (begin, end), sha256 in samples]
        return self._hashed.num_bytes, self._hashed.digest.hexdigest(), spans


class HashedReader:
    """A stream of a tar that hashes its samples as they are read. `ends`: where the samples end, in bytes."""

    def __init__(self, stream: IO[bytes], ends: Iterable[int]) -> None:
        self._stream = stream
        self.samples = SpanHashes(ends)

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.samples.update(data)
        return data

    def read_to_end(self) -> None:
        while self.read(_CHUNK_BYTES):
            pass


def read_in_order(stream: IO[bytes] | HashedReader) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, members) of the samples of a tar, by the webdataset package.

    A damaged tar raises tarfile.TarError or ends early.
    """
    for sample in group_by_keys(tar_file_expander([{"url": "", "stream": stream}])):
        yield sample["__key__"], {name: data for name, data in sample.items() if not name.startswith("__")}


def split_members(data: bytes, key: str) -> dict[str, bytes]:
    """The members of one sample from the bytes of its span: suffix to content.

    Raises ValueError where the bytes are not whole members of that key.
    """
    members: dict[str, bytes] = {}
    start = 0
    while start < len(data):
        try:
            header = tarfile.TarInfo.frombuf(data[start : start + tarfile.BLOCKSIZE], "utf-8", "strict")
        except tarfile.HeaderError as error:
            raise ValueError(f"no tar header where a member of {key} should begin ({error})") from error
        found, _, suffix = header.name.partition(".")
        start += tarfile.BLOCKSIZE
        if found != key:
            raise ValueError(f"a member of {found!r} lies where {key!r} should be")
        if start + header.size > len(data):
            raise ValueError(f"{header.name} is cut short")
        members[suffix] = data[start : start + header.size]
        start += header.size + -header.size % tarfile.BLOCKSIZE
    return members


def shard_name(split: str, number: int) -> str:
    """`train-000003.tar`."""
    return f"{split}-{number:06d}.tar"


def shard_split(name: str) -> str:
    """The split that a shard's name tells."""
    return name.rsplit("-", 1)[0]


def names_of(shards: Iterable[str], split: str) -> list[str]:
    """Those of `shards` that belong to a split, in order of number."""
    return sorted(name for name in shards if shard_split(name) == split)
