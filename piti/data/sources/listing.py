"""Files as they are listed, paired by name, and opened.

A listing is kept in memory: about 0.3 KB a file (measured with paths of 60 characters).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from itertools import groupby
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
        self._by_path: dict[str, Entry] | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def groups(self) -> Iterator[tuple[str, list[Entry]]]:
        """Files whose paths without their suffixes are alike, and that path."""
        for name, same in groupby(self._entries, _name):
            yield name, list(same)

    def below(self, folder: str) -> Listing:
        """The files in a folder of this one, their paths relative to it."""
        start = f"{folder}/"
        found = (entry._replace(path=entry.path.replace("\\", "/")) for entry in self._entries)
        return Listing(entry._replace(path=entry.path[len(start) :]) for entry in found if entry.path.startswith(start))

    def get(self, path: str) -> Entry | None:
        """The file of that path, or of a path that differs only in what `pairing_name` evens out."""
        if self._by_path is None:
            exact = {entry.path: entry for entry in self._entries}
            self._by_path = {pairing_name(path): entry for path, entry in exact.items()} | exact
        return self._by_path.get(path) or self._by_path.get(pairing_name(path))


def _name(entry: Entry) -> str:
    return stem(pairing_name(entry.path))


def alike(*listings: Listing | None) -> Iterator[tuple[str, list[list[Entry]]]]:
    """Every path without suffix that files of any listing have, in order, and those files of each listing."""
    groups = [iter(()) if listing is None else listing.groups() for listing in listings]
    heads = [next(files, None) for files in groups]
    while names := [head[0] for head in heads if head is not None]:
        name = min(names)
        found: list[list[Entry]] = []
        for place, head in enumerate(heads):
            if head is None or head[0] != name:
                found.append([])
            else:
                found.append(head[1])
                heads[place] = next(groups[place], None)
        yield name, found


class Tree(Protocol):
    """Files below one place."""

    def entries(self) -> Listing:
        """Every file; hidden ones (a component begins with a dot) left out. Raises DataError where there is no such place."""

    def holds(self, folder: str) -> bool:
        """Whether there is a folder of that relative path ("": the tree itself); of a folder, without listing its files."""

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
    if not storage.is_local(uri):
        return storage.read_bytes(uri)
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
