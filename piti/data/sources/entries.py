"""What a tree of files is: a listing, and a way to read one of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple, Protocol, Self

from piti.data.spill import SortedTable

_AFTER_SLASH = "0"  # the character that follows `/`
_first = itemgetter(0)
_BEFORE_SUFFIX, _AFTER_SUFFIXES = "\0", "\1"


class Entry(NamedTuple):
    """One file: `path` relative to the tree with `/`, and what tells that its content may have changed."""

    path: str
    size_bytes: int
    modified: str

    @property
    def identity(self) -> str:
        return f"{self.path}|{self.size_bytes}|{self.modified}"


class DamagedMemberError(OSError):
    """A member of an archive that is not whole, or that cannot be unpacked. Reading it again would fail the same way."""


class Listing:
    """Files on disk: a dataset has millions. Of two with one path the later one counts.

    They are sorted by path without suffix, then by suffix, so that files named alike are neighbours. `located_entry`
    is for the tree that made it: it tells where in its archive a file lies.
    """

    def __init__(self, table: SortedTable, folder: str = "") -> None:
        self._table, self._prefix = table, folder
        self._end = None if not folder else folder[:-1] + _AFTER_SLASH

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Self:
        """Take the entries in any order."""
        return cls(SortedTable(((_key(path), size, modified, None) for path, size, modified in entries), columns=3))

    @classmethod
    def located(cls, entries: Iterable[tuple[Entry, bytes]]) -> Self:
        """Take the entries in any order, each with its location."""
        rows = ((_key(path), size, modified, place) for (path, size, modified), place in entries)
        return cls(SortedTable(rows, columns=3))

    def below(self, folder: str) -> Listing:
        """The files in a folder of this one, their paths relative to it. A view: nothing is copied."""
        return Listing(self._table, f"{self._prefix}{folder}/")

    def __len__(self) -> int:
        return self._table.count(self._prefix, self._end)

    def __bool__(self) -> bool:
        return next(iter(self), None) is not None

    def __iter__(self) -> Iterator[Entry]:
        return (entry for _, entry in self._entries())

    def groups(self) -> Iterator[tuple[str, list[Entry]]]:
        """Files whose paths without their suffixes are alike, and that path."""
        for name, same in groupby(self._entries(), _first):
            yield name, [entry for _, entry in same]

    def _entries(self) -> Iterator[tuple[str, Entry]]:
        start = len(self._prefix)
        for key, size_bytes, modified, _ in self._table.rows(self._prefix, self._end):
            end = key.rfind(_BEFORE_SUFFIX)
            name = key[start:end]
            yield name, Entry(name + key[end + 1 :], size_bytes, modified)

    def named(self, name: str) -> list[Entry]:
        """The files whose path without its suffix is `name`."""
        start, first = len(self._prefix), f"{self._prefix}{name}"
        found = self._table.few(first + _BEFORE_SUFFIX, first + _AFTER_SUFFIXES)
        return [Entry(_path(key)[start:], size_bytes, modified) for key, size_bytes, modified, _ in found]

    def get(self, path: str) -> Entry | None:
        """The file of that path, if it is there."""
        found = self._table.get(_key(self._prefix + path))
        return None if found is None else Entry(path, found[0], found[1])

    def located_entry(self, path: str) -> tuple[Entry, bytes] | None:
        """The file of that path, and where the archive keeps it."""
        found = self._table.get(_key(self._prefix + path))
        return None if found is None or found[2] is None else (Entry(path, found[0], found[1]), found[2])


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
        """Every file; hidden ones (a component begins with a dot) left out.

        Raises DataError where there is no such place.
        """

    def holds(self, folder: str) -> bool:
        """Whether there is a folder of that relative path ("": the tree itself), found without listing files."""

    def read(self, path: str) -> bytes:
        """Content of a file by its relative path. Raises OSError, and DamagedMemberError where the archive is at fault."""

    def read_soon(self, path: str) -> None:
        """Have a local disk begin to read what `read` will be asked for, see `storage.read_soon`."""


def is_hidden(path: str) -> bool:
    """Whether a component of a relative path begins with a dot, or is macOS's archive litter."""
    return path.startswith(".") or "/." in path or ("__MACOSX" in path and "__MACOSX" in path.split("/"))


def stem(path: str) -> str:
    """A relative path without its file's suffix."""
    dot = path.rfind(".")
    return path[:dot] if dot > path.rfind("/") else path


def _key(path: str) -> str:
    """By which a path is sorted: nothing in a longer stem comes before the suffixes of a shorter one."""
    dot = path.rfind(".")
    if dot > path.rfind("/"):
        return f"{path[:dot]}{_BEFORE_SUFFIX}{path[dot:]}"
    return path + _BEFORE_SUFFIX


def _path(key: str) -> str:
    end = key.rfind(_BEFORE_SUFFIX)
    return key[:end] + key[end + 1 :]
