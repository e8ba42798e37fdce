"""What a tree of files is: a listing, and a way to read one of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol, Self

from piti.data.spill import SortedTable

_AFTER_SLASH = "0"  # the character that follows `/`; `/` in turn follows `.`


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
    """Files sorted by path, on disk: a dataset has millions. Of two with one path the later one counts.

    `located_entry` is for the tree that made it: it tells where in its archive a file lies.
    """

    def __init__(self, table: SortedTable, folder: str = "") -> None:
        self._table, self._prefix = table, folder
        self._end = None if not folder else folder[:-1] + _AFTER_SLASH

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Self:
        """Take the entries in any order."""
        return cls(SortedTable(((*entry, None) for entry in entries), columns=3))

    @classmethod
    def located(cls, entries: Iterable[tuple[Entry, bytes]]) -> Self:
        """Take the entries in any order, each with its location."""
        return cls(SortedTable(((*entry, location) for entry, location in entries), columns=3))

    def below(self, folder: str) -> Listing:
        """The files in a folder of this one, their paths relative to it. A view: nothing is copied."""
        return Listing(self._table, f"{self._prefix}{folder}/")

    def __len__(self) -> int:
        return self._table.count(self._prefix, self._end)

    def __bool__(self) -> bool:
        return next(iter(self), None) is not None

    def __iter__(self) -> Iterator[Entry]:
        start = len(self._prefix)
        for path, size_bytes, modified, _ in self._table.rows(self._prefix, self._end):
            yield Entry(path[start:], size_bytes, modified)

    def get(self, path: str) -> Entry | None:
        """The file of that path, if it is there."""
        found = self._table.get(self._prefix + path)
        return None if found is None else Entry(path, found[0], found[1])

    def located_entry(self, path: str) -> tuple[Entry, bytes] | None:
        """The file of that path, and where the archive keeps it."""
        found = self._table.get(self._prefix + path)
        return None if found is None or found[2] is None else (Entry(path, found[0], found[1]), found[2])

    def suffixed(self, name: str) -> list[Entry]:
        """Files whose path is `name`, a dot and a suffix without a dot, by path."""
        start, first, found = len(self._prefix), f"{self._prefix}{name}.", []
        for path, size_bytes, modified, _ in self._table.few(first, f"{self._prefix}{name}/"):
            if "." not in path[len(first) :] and "/" not in path[len(first) :]:
                found.append(Entry(path[start:], size_bytes, modified))
        return found


class Tree(Protocol):
    """Files below one place."""

    def entries(self) -> Listing:
        """Every file, sorted by path; hidden ones (a component begins with a dot) left out.

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
    return path.startswith(".") or "/." in path or "__MACOSX" in path.split("/")


def stem(path: str) -> str:
    """A relative path without its file's suffix."""
    folder, slash, name = path.rpartition("/")
    return folder + slash + (name.rsplit(".", 1)[0] if "." in name else name)
