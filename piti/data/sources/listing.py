"""Files as they are listed, paired by name, and opened.

A listing is kept in memory: about 0.3 KB a file (measured with paths of 60 characters).
"""

from __future__ import annotations

import heapq
import os
import stat
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import groupby, repeat
from typing import IO, Any, NamedTuple, Protocol

from piti import storage
from piti.data.sources.names import pairing_name, stem
from piti.data.sources.retrying import UnreadableFileError
from piti.errors import DataError

_REMOTE_BLOCK_BYTES = 1 << 20  # so much is fetched at once: members are small, and not read in order
_VERSION_FIELDS = ("ETag", "etag", "LastModified", "updated", "mtime", "created")


class Entry(NamedTuple):
    """One file: `path` relative to the tree with `/`, and what tells that its content may have changed."""

    path: str
    size_bytes: int
    version: str

    @property
    def identity(self) -> str:
        return f"{self.path}|{self.size_bytes}|{self.version}"


class Listing:
    """Files sorted by path without suffix, then by path, so that files named alike are neighbours.

    Names that differ only in what `pairing_name` evens out are alike.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._entries = sorted(entries, key=lambda entry: (_name(entry), entry.path))

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def below(self, folder: str) -> Listing:
        """The files in a folder of this one, their paths relative to it."""
        start = f"{folder}/"
        found = (entry._replace(path=entry.path.replace("\\", "/")) for entry in self._entries)
        return Listing(entry._replace(path=entry.path[len(start) :]) for entry in found if entry.path.startswith(start))

    def get(self, path: str) -> Entry | None:
        """The file of that path, or of a path that differs only in what `pairing_name` evens out."""
        return self._by_path.get(path) or self._by_path.get(pairing_name(path))

    @cached_property
    def _by_path(self) -> dict[str, Entry]:
        exact = {entry.path: entry for entry in self._entries}
        return {pairing_name(path): entry for path, entry in exact.items()} | exact


def _name(entry: Entry) -> str:
    return stem(pairing_name(entry.path))


def alike(*listings: Listing | None) -> Iterator[tuple[str, list[list[Entry]]]]:
    """Every path without suffix that files of any listing have, in order, and those files of each listing."""
    numbered = (zip(repeat(number), listing or ()) for number, listing in enumerate(listings))
    merged = heapq.merge(*numbered, key=lambda pair: _name(pair[1]))
    for name, pairs in groupby(merged, key=lambda pair: _name(pair[1])):
        found: list[list[Entry]] = [[] for _ in listings]
        for number, entry in pairs:
            found[number].append(entry)
        yield name, found


class Tree(Protocol):
    """Files below one place."""

    def entries(self) -> Listing:
        """Every file; hidden ones (a component begins with a dot) left out. Raises DataError where there is no such place."""

    def read(self, path: str) -> bytes:
        """Content of a file by its relative path. Raises OSError, UnreadableFileError where it can never be read."""


def object_version(about: dict[str, Any]) -> str:
    """What a filesystem says about a file's version: its ETag, else its time of change, else nothing."""
    return next((str(about[field]) for field in _VERSION_FIELDS if about.get(field)), "")


def stored_version(uri: str) -> str:
    """Changes whenever the file at `uri` may have changed. Raises DataError where there is none."""
    fs, path = storage.filesystem(uri)
    try:
        about = fs.info(path)
    except FileNotFoundError as error:
        raise DataError(f"there is no {uri}", "correct the path in data.source") from error
    return f"{about.get('size')}|{object_version(about)}"


def read_file(uri: str) -> bytes:
    """Content of a regular file or an object. Raises OSError, UnreadableFileError for a pipe, socket or device."""
    with open_regular(uri) as stream:
        return stream.read()


def open_regular(uri: str) -> IO[bytes]:
    """A local file or an object, open for reading. Raises OSError, UnreadableFileError for a pipe, socket or device."""
    if not storage.is_local(uri):
        fs, path = storage.filesystem(uri)
        stream: IO[bytes] = fs.open(path, "rb", block_size=_REMOTE_BLOCK_BYTES)
        return stream
    mode = os.stat(storage.local_path(uri)).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a folder raises IsADirectoryError below
        raise UnreadableFileError("it is a pipe, socket or device, not a file")
    return open(storage.local_path(uri), "rb")
