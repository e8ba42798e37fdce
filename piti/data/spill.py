"""Rows that wait on disk instead of in memory: SQLite databases in the temporary folder that nothing outlives."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import weakref
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal, NamedTuple

from piti import storage
from piti.errors import DataError

_CACHE_KIB = 1024  # of pages that one database keeps in memory, however large it is
_ROWS_AT_ONCE = 2048  # sorted and inserted together: neighbours land on the same page
_LEAST_AHEAD, _MOST_AHEAD = 4, 256  # rows read at a look-up
_PRAGMAS = f"""
    PRAGMA locking_mode = EXCLUSIVE;
    PRAGMA journal_mode = OFF;
    PRAGMA synchronous = OFF;
    PRAGMA cache_size = -{_CACHE_KIB};
"""


class TemporaryDatabase:
    """A database without a name: its file is gone from the folder once it is open, and from the disk once this is.

    Any thread may use it (SQLite takes turns), no other process may.
    """

    def __init__(self, schema: str) -> None:
        with _disk_space():
            descriptor, path = tempfile.mkstemp(prefix="piti-", suffix=".sqlite")
            os.close(descriptor)
            try:
                self.connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
                self.close = weakref.finalize(self, self.connection.close)
                self.connection.executescript(_PRAGMAS + schema)
            finally:
                os.unlink(path)

    @contextmanager
    def filling(self) -> Iterator[None]:
        """One transaction. Raises DataError where the disk is full."""
        with _disk_space():
            self.connection.execute("BEGIN")
            yield
            self.connection.execute("COMMIT")


@contextmanager
def _disk_space() -> Iterator[None]:
    """What `storage.disk_space` does for files, for SQLite, which has errors of its own."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        if not _is_full(error):
            raise
        remedy = "free some space, or set TMPDIR to a larger disk"
        raise DataError(f"no space left in {tempfile.gettempdir()} for a listing", remedy) from error


def _is_full(error: OSError | sqlite3.OperationalError) -> bool:
    if isinstance(error, OSError):
        return error.errno in storage.DISK_FULL
    return error.sqlite_errorcode in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE)


class _Stretch(NamedTuple):
    """All rows from the key `first` to the last of `rows`, and beyond where `is_last`. Never changed."""

    first: bytes
    rows: list[tuple[Any, ...]]
    is_last: bool

    def covers(self, first: bytes, end: bytes) -> bool:
        """Whether all rows from `first` to before `end` are here."""
        return self.first <= first and (self.is_last or (bool(self.rows) and end <= self.rows[-1][0]))


class SortedTable:
    """Rows (key, value, ...) in a temporary file, in the order of their keys, each key once.

    `keep`: which of several rows with one key. Keys are any text, also with the escaped bytes of file names that are
    no UTF-8, and sorted as Python sorts text; values are what SQLite stores (text with such escapes: see `to_bytes`).

    Look-ups (`get`, `few`) read ahead the further the more of them come in the order of keys, as they do where one
    sorted listing is held against another: then SQLite is asked once for hundreds of them.
    """

    def __init__(self, rows: Iterable[tuple[Any, ...]], columns: int, keep: Literal["first", "last"] = "last") -> None:
        names = "".join(f", value{number}" for number in range(columns))
        self._database = TemporaryDatabase(f"CREATE TABLE sorted (key BLOB PRIMARY KEY{names}) WITHOUT ROWID")
        self._connection = self._database.connection
        self._stretch, self._ahead, self._was_of_use = _Stretch(b"", [], is_last=False), _LEAST_AHEAD, False
        conflict = "REPLACE" if keep == "last" else "IGNORE"
        insert = f"INSERT OR {conflict} INTO sorted VALUES (?{', ?' * columns})"
        packed = ((to_bytes(row[0]), *row[1:]) for row in rows)
        with self._database.filling():
            while some := list(islice(packed, _ROWS_AT_ONCE)):
                some.sort(key=_first)
                self._connection.executemany(insert, some)

    def count(self, first: str = "", end: str | None = None) -> int:
        """How many keys there are from `first` to before `end` (None: to the last)."""
        return int(self._select("COUNT(*)", to_bytes(first), None if end is None else to_bytes(end)).fetchone()[0])

    def rows(self, first: str = "", end: str | None = None) -> Iterator[tuple[Any, ...]]:
        """(key, value, ...) from the key `first` to before `end` (None: to the last)."""
        found = self._select("*", to_bytes(first), None if end is None else to_bytes(end))
        yield from map(_with_text, found)  # not `return`: a generator keeps the table open

    def few(self, first: str, end: str) -> list[tuple[Any, ...]]:
        """What `rows` gives, for look-ups that find few."""
        return [_with_text(row) for row in self._look_up(to_bytes(first), to_bytes(end))]

    def get(self, key: str) -> tuple[Any, ...] | None:
        """The values of a key; None where it is not there."""
        packed = to_bytes(key)
        found = self._look_up(packed, packed + b"\0")
        return found[0][1:] if found else None

    def _look_up(self, first: bytes, end: bytes) -> list[tuple[Any, ...]]:
        stretch = self._stretch
        if stretch.covers(first, end):
            self._was_of_use = True
        else:
            self._ahead = min(2 * self._ahead, _MOST_AHEAD) if self._was_of_use else _LEAST_AHEAD
            stretch, self._was_of_use = self._read_stretch(first, end, self._ahead), False
            self._stretch = stretch
        begin = bisect_left(stretch.rows, (first,))  # shorter than a row, so before the one with this key
        return stretch.rows[begin : bisect_left(stretch.rows, (end,), begin)]

    def _read_stretch(self, first: bytes, end: bytes, count: int) -> _Stretch:
        """`count` rows from `first` on, or as many as reach beyond `end`."""
        cursor = self._select("*", first, None)
        rows: list[tuple[Any, ...]] = []
        is_last = False
        while not is_last and (not rows or rows[-1][0] < end):
            some = cursor.fetchmany(count)
            rows += some
            is_last = len(some) < count
        cursor.close()
        return _Stretch(first, rows, is_last)

    def _select(self, what: str, first: bytes, end: bytes | None) -> sqlite3.Cursor:
        before, bounds = ("", (first,)) if end is None else ("AND key < ?", (first, end))
        return self._connection.execute(f"SELECT {what} FROM sorted WHERE key >= ? {before} ORDER BY key", bounds)


def to_bytes(text: str) -> bytes:
    """Any text as bytes that sort alike: UTF-8, with escaped bytes (lone surrogates) as what they are to Python."""
    return text.encode("utf-8", "surrogatepass")


def to_text(data: bytes) -> str:
    """The text that `to_bytes` was given."""
    return data.decode("utf-8", "surrogatepass")


def _first(row: tuple[Any, ...]) -> Any:
    return row[0]


def _with_text(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """A stored row with its key as text."""
    return to_text(row[0]), *row[1:]
