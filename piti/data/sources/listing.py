"""A table of pairs: CSV, TSV or Parquet, a row a picture, with the files that go with it and its split."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from piti import storage
from piti.config import DataConfig, ListSourceConfig
from piti.data.items import Item, Split
from piti.data.sources.entries import Entry, Listing
from piti.data.sources.files import FileItem, FilePart, Reading, TreeFile, joint_identity, joint_size
from piti.data.sources.keys import ValidationDraw, draw_validation, safe_key
from piti.data.sources.reading import read_patiently
from piti.data.sources.trees import open_tree
from piti.data.spill import SortedTable
from piti.errors import DataError, PitiError

_FORMAT_VERSION = 2
_SPLIT_NAMES: dict[str, Split] = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
}  # fmt: skip
_ROWS_AT_ONCE = 1024
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class UriFile:
    """A file by its own absolute path or URI."""

    path: str

    @property
    def is_remote(self) -> bool:
        return not storage.is_local(self.path)

    def read(self) -> bytes:
        return storage.read_bytes(self.path)

    def read_soon(self) -> None:
        if storage.is_local(self.path):
            storage.read_soon(storage.local_path(self.path))


@dataclass(frozen=True)
class Pair:
    """A row of the table, numbered from 1; empty cells are None."""

    number: int
    image: str | None
    condition: str | None
    normals: str | None
    split: str | None

    @property
    def files(self) -> list[str]:
        """What the row names."""
        return [part for part in (self.image, self.condition, self.normals) if part is not None]

    @property
    def name(self) -> str:
        return "|".join(part for part in (self.image, self.condition) if part) or f"row {self.number}"


class Pairs:
    """The rows of a table, in order, on disk: a table has millions."""

    def __init__(self, rows: Iterable[Pair]) -> None:
        cells = ((f"{row.number:016d}", row.image, row.condition, row.normals, row.split) for row in rows)
        self._table = SortedTable(cells, columns=4)

    def __len__(self) -> int:
        return self._table.count()

    def __iter__(self) -> Iterator[Pair]:
        for number, *cells in self._table.rows():
            yield Pair(int(number), *cells)


class ListSource:
    """See ListSourceConfig. Every row is an item."""

    def __init__(self, config: ListSourceConfig, data: DataConfig) -> None:
        self._config, self._data = config, data
        self._root = config.root or config.path.rstrip("/").rpartition("/")[0] or "."

    def fingerprint(self) -> str:
        with _opened(self._config.path):
            table = storage.sha256_file(self._config.path)
        digest = hashlib.sha256("\n".join([str(_FORMAT_VERSION), self._root, table]).encode())
        for entry in self._files(self._rows()):
            digest.update(f"\n{entry.path}|{entry.identity}".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def problems(self) -> list[PitiError]:
        try:
            rows = self._rows()
            files = self._files(rows)
        except PitiError as error:
            return [error]
        problems: list[PitiError] = []
        if not any(row.image and files.get(row.image) for row in rows):
            example = next((row.image for row in rows if row.image), "no picture")
            problem = (
                f"none of the {len(rows)} pictures of {self._config.path} is in {self._root} (the first: {example})"
            )
            problems.append(DataError(problem, "set data.source.root to what the names are relative to"))
        if self._data.modality != "sketch" and not any(row.condition for row in rows):
            problem = f"{self._config.path} names no conditions, which modality {self._data.modality} needs"
            problems.append(DataError(problem, f"add a column {self._config.condition!r}, or name yours"))
        return problems

    def items(self, split: Split) -> Iterator[Item]:
        """In the order of rows. Raises DataError where the table cannot be read."""
        rows = self._rows()
        files = self._files(rows)
        drawn = self._validation(rows)
        first = SortedTable(((row.name, row.number) for row in rows), columns=1, keep="first")
        for row in rows:
            (number,) = first.get(row.name) or (row.number,)
            if self._split(row, drawn) == split:
                yield self._item(row, files, number if number != row.number else None)

    def _split(self, row: Pair, drawn: ValidationDraw) -> Split:
        if row.split is not None:
            return _SPLIT_NAMES[row.split]
        return "validation" if row.image is not None and row.image in drawn else "train"

    def _item(self, row: Pair, files: Listing, repeats: int | None) -> FileItem:
        name, found = row.name, [files.get(part) for part in row.files]
        missing = [part for part, entry in zip(row.files, found, strict=True) if entry is None]
        fault = None
        if row.image is None:
            fault = "row names no picture"
        elif repeats is not None:
            fault = f"row {row.number} repeats row {repeats}"
            name = f"{name}|row {row.number}"
        elif missing:
            fault = f"there is no file {missing[0]} in {self._root}"
        elif row.condition is None and self._data.modality != "sketch":
            fault = "row names no condition"
        normals = row.normals if self._data.modality == "geometry" else None
        return FileItem(
            safe_key(name), f"row {row.number}: {row.image}", joint_identity(*found),
            Reading.of(self._data, self._config.depth_unit_metres), self._part(row.image), self._part(row.condition),
            self._part(normals), fault=fault, size_bytes=joint_size(*found),
        )  # fmt: skip

    def _part(self, name: str | None) -> FilePart | None:
        if name is None:
            return None
        return UriFile(name) if _is_absolute(name) else TreeFile(self._root, name)

    def _validation(self, rows: Pairs) -> ValidationDraw:
        """Of the pictures, where the table has no splits."""
        return draw_validation((row.image for row in rows if row.image), self._config.validation_share)

    def _files(self, rows: Pairs) -> Listing:
        """The files that rows name and that are there."""
        names = SortedTable(((part,) for row in rows for part in row.files), columns=0)
        has_relative = any(not _is_absolute(name) for (name,) in names.rows())
        tree = open_tree(self._root).entries() if has_relative else None

        def look_up(name: str) -> Entry | None:
            return _look_up(name) if _is_absolute(name) or tree is None else tree.get(name)

        return Listing.of(entry for (name,) in names.rows() if (entry := look_up(name)) is not None)

    def _rows(self) -> Pairs:
        rows = Pairs(self._checked_rows())
        if not len(rows):
            raise DataError(f"{self._config.path} has no rows", "a row names a picture and what goes with it")
        return rows

    def _checked_rows(self) -> Iterator[Pair]:
        """Raises DataError where a column is missing or splits are wrong."""
        config = self._config
        names = (config.image, config.condition, config.normals, config.split)
        without_split: int | None = None
        with_split = False
        for number, record in enumerate(_read_table(config.path), 1):
            if config.image not in record:
                columns = ", ".join(map(repr, record))
                raise DataError(
                    f"{config.path} has no column {config.image!r}, only {columns}",
                    "set data.source.image to the column that names the pictures",
                )
            row = Pair(number, *(_cell(record, name) for name in names))
            if row.split is None:
                without_split = without_split or number
            elif row.split not in _SPLIT_NAMES:
                raise DataError(
                    f"{config.path}, row {number}: there is no split {row.split!r}", "use train and validation"
                )
            with_split = with_split or row.split is not None
            yield row
        if with_split and without_split is not None:
            problem = f"{config.path}, row {without_split} has no split, others have"
            raise DataError(problem, "give all rows one, or none")


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    try:
        with storage.open_read(path) as stream:
            yield stream
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError(f"there is no list {path}", "correct data.source.path") from error


def _read_table(path: str) -> Iterator[dict[str, Any]]:
    """Rows as they are read. Raises DataError where that is not possible."""
    with _opened(path) as stream:
        if path.lower().endswith(".parquet"):
            yield from _read_parquet(path, stream)
            return
        delimiter = _DELIMITERS.get(path.lower()[-4:])
        if delimiter is None:
            raise DataError(f"{path} is neither .csv, .tsv nor .parquet", "convert it, or correct its suffix")
        try:
            text = io.TextIOWrapper(stream, "utf-8-sig", newline="")
            yield from csv.DictReader(text, delimiter=delimiter)
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path} is no readable table ({error})", "save it as UTF-8") from error


def _read_parquet(path: str, stream: IO[bytes]) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        for batch in pq.ParquetFile(stream).iter_batches(_ROWS_AT_ONCE):
            yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is no whole Parquet file ({error})", "write it again") from error


def _cell(record: dict[str, Any], name: str) -> str | None:
    value = record.get(name)
    text = "" if value is None else str(value).strip().removeprefix("./")
    return text or None


def _is_absolute(name: str) -> bool:
    return name.startswith("/") or "://" in name


def _look_up(uri: str) -> Entry | None:
    fs, path = storage.filesystem(uri)
    try:
        about = read_patiently(uri, lambda: fs.info(path))
    except OSError:
        return None
    version = next((str(about[name]) for name in ("ETag", "mtime", "LastModified", "updated") if about.get(name)), "")
    return Entry(uri, int(about.get("size") or 0), version)
