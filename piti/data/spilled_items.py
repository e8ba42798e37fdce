"""The items of a split on disk, found again by the hashes that divide them among shards."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from itertools import islice
from operator import itemgetter

from piti.data.items import Item
from piti.data.spill import TemporaryDatabase
from piti.seeds import stable_hash

_SCHEMA = """
    CREATE TABLE items (number INTEGER PRIMARY KEY, line BLOB, packed BLOB);
    CREATE TABLE places (shard INTEGER, number INTEGER, place INTEGER, subset INTEGER, PRIMARY KEY (shard, number))
        WITHOUT ROWID;
    CREATE TABLE subsets (subset INTEGER, number INTEGER, PRIMARY KEY (subset, number)) WITHOUT ROWID;
"""
_CHOSEN = "FROM places CROSS JOIN items USING (number) WHERE shard BETWEEN ? AND ? AND (subset, number) <= (?, ?)"
_ITEMS_AT_ONCE = 1024
_HALF = 1 << 63  # hashes of 64 bits less this are SQLite's integers, in the same order
_LARGEST = _HALF - 1


class SpilledItems:
    """Items in a temporary file. `few`: only so many of them count, drawn by `seed`; None: all. `len()` counts them."""

    def __init__(self, items: Iterable[Item], few: int | None, seed: int) -> None:
        self._database = TemporaryDatabase(_SCHEMA)
        self._connection = self._database.connection
        numbered = enumerate(items)
        self._found = self._found_bytes = 0
        with self._database.filling():
            while some := list(islice(numbered, _ITEMS_AT_ONCE)):
                self._found += len(some)
                self._found_bytes += sum(item.size_bytes for _, item in some)
                self._insert(some, None if few is None else seed)
        self._last_chosen = self._last_of_subset(few)
        self._count = self._found if few is None else min(few, self._found)

    def __len__(self) -> int:
        return self._count

    @property
    def num_not_drawn(self) -> int:
        """Items that were found and do not count."""
        return self._found - self._count

    @property
    def mean_bytes(self) -> float:
        """Of an item's files, over all that were found."""
        return self._found_bytes / max(1, self._found)

    def lines(self, number: int, count: int) -> list[bytes]:
        """Key and identity of the items of shard `number` of `count`, in order."""
        return self._column("line", number, count)

    def packed(self, number: int, count: int) -> list[bytes]:
        """The items of shard `number` of `count`, in order, each pickled."""
        return self._column("packed", number, count)

    def _insert(self, some: list[tuple[int, Item]], subset_seed: int | None) -> None:
        contents, places = [], []
        for number, item in some:
            line = f"{item.key}|{item.identity}\n".encode("utf-8", "surrogateescape")
            contents.append((number, line, pickle.dumps(item, pickle.HIGHEST_PROTOCOL)))
            subset = -_HALF if subset_seed is None else stable_hash("subset", subset_seed, item.key) - _HALF
            shard, place = (stable_hash(what, item.key) - _HALF for what in ("shard", "order"))
            places.append((shard, number, place, subset))
        self._connection.executemany("INSERT INTO items VALUES (?, ?, ?)", contents)
        self._connection.executemany("INSERT INTO places VALUES (?, ?, ?, ?)", sorted(places))
        if subset_seed is not None:
            subsets = sorted((subset, number) for _, number, _, subset in places)
            self._connection.executemany("INSERT INTO subsets VALUES (?, ?)", subsets)

    def _last_of_subset(self, few: int | None) -> tuple[int, int]:
        """The last (hash, number) in the order of the draw that still counts."""
        if few is None or few >= self._found:
            return _LARGEST, _LARGEST
        query = "SELECT subset, number FROM subsets ORDER BY subset, number LIMIT 1 OFFSET ?"
        subset, number = self._connection.execute(query, (few - 1,)).fetchone()
        return subset, number

    def _column(self, name: str, number: int, count: int) -> list[bytes]:
        first, end = (-(-(place << 64) // count) - _HALF for place in (number, number + 1))
        query = f"SELECT place, number, {name} {_CHOSEN}"
        rows = self._connection.execute(query, (first, end - 1, *self._last_chosen)).fetchall()
        return [content for _, _, content in sorted(rows, key=itemgetter(0, 1))]
