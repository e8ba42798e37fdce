"""WebDataset tars whose bytes follow from their content alone, and the samples in them by offset.

The webdataset package writes them and reads them in order; a sample by its place is read by `split_members`.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from webdataset import TarWriter
from webdataset.tariterators import group_by_keys, tar_file_expander

from piti import storage

_MODE = 0o644


@dataclass(frozen=True)
class Span:
    """Where a sample lies in its tar: `size` bytes of headers and contents of its members."""

    offset: int
    size: int
    sha256: str


class SampleTarWriter:
    """Writes samples to a local tar file. Owner, mode and time are fixed, so equal samples give equal bytes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open(path, "xb")  # noqa: SIM115 - closed by `close`
        self._tar = TarWriter(self._file, user="", group="", mode=_MODE, mtime=0, encoder=False, compress=False)
        self._edges = [0]  # where samples begin and end

    def close(self) -> None:
        """Close the file, which `finish` alone makes a whole tar."""
        with suppress(OSError):  # of a full disk, which has already been raised where it was met
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

    def finish(self) -> tuple[int, str, list[Span]]:
        """End the archive. Its size in bytes, its sha256, and where each sample lies, in the order of `add`."""
        self._tar.close()
        self._file.close()
        with open(self._path, "rb") as stream:
            spans = [
                Span(begin, end - begin, storage.sha256_bytes(stream.read(end - begin)))
                for begin, end in pairwise(self._edges)
            ]
        return self._path.stat().st_size, storage.sha256_file(str(self._path)), spans


def read_in_order(spans: Iterable[bytes]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, members) of each sample, by the webdataset package. `spans`: the bytes of the samples in their tar."""
    tars = ({"url": "", "stream": io.BytesIO(span)} for span in spans)
    for sample in group_by_keys(tar_file_expander(tars)):
        yield sample["__key__"], {name: data for name, data in sample.items() if not name.startswith("__")}


def split_members(span: bytes) -> dict[str, bytes]:
    """The members of one sample from its bytes in the tar: suffix to content. Twice as fast as `read_in_order`."""
    members: dict[str, bytes] = {}
    position = 0
    while position < len(span):
        header = tarfile.TarInfo.frombuf(span[position : position + tarfile.BLOCKSIZE], "utf-8", "strict")
        begin = position + tarfile.BLOCKSIZE
        members[header.name.partition(".")[2]] = span[begin : begin + header.size]
        position = begin + header.size + -header.size % tarfile.BLOCKSIZE
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
