"""A table of pairs: CSV, TSV or Parquet, a row a picture, with the files that go with it and its split.

Errors quote neither the cells nor the columns of a table before some of its pictures are found: it may be another file.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

from piti import storage
from piti.config import DataConfig, ListSourceConfig
from piti.config.section import require_known_scheme
from piti.credentials import REMEDY, holds_credentials
from piti.data.items import SPLITS, Item, Split
from piti.data.sources.files import FileItem, FilePart, Reading, TreeFile, UriFile
from piti.data.sources.listing import Entry, object_version, open_regular
from piti.data.sources.names import draw_validation, safe_key
from piti.data.sources.retrying import UnreadableFileError, read_patiently
from piti.data.sources.trees import open_tree, split_archive
from piti.errors import DataError, PitiError

_FORMAT_VERSION = 3
_SPLIT_NAMES: dict[str, Split] = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
}  # fmt: skip
_ROWS_AT_ONCE = 1024
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_NEARLY = 0.75  # similarity of names, by difflib, from which a column is taken for a misspelt one
_COLUMNS = ("image", "condition", "normals", "split")


class Pair(NamedTuple):
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


class ListSource:
    """See ListSourceConfig. Every row is an item."""

    def __init__(self, config: ListSourceConfig, data: DataConfig) -> None:
        self._config, self._data = config, data
        self._root = config.root or config.path.rstrip("/").rpartition("/")[0] or "."

    def fingerprint(self, splits: Sequence[Split] = SPLITS) -> str:
        with _opened(self._config.path):
            table = storage.sha256_file(self._config.path)
        digest = hashlib.sha256("\n".join([str(_FORMAT_VERSION), self._root, table]).encode())
        found = self._files(self._rows_of(splits))
        for name in sorted(found):
            digest.update(f"\n{name}|{found[name].identity}".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def problems(self, splits: Sequence[Split] = SPLITS) -> list[PitiError]:
        try:
            rows = self._rows_of(splits)
            files = self._files(rows)
        except PitiError as error:
            return [error]
        problems: list[PitiError] = []
        if not any(row.image in files for row in rows):
            problem = f"none of the {len(rows)} pictures that {self._config.path} names is in {self._root}"
            problems.append(DataError(problem, "set data.source.root to what the names are relative to"))
        if self._data.modality != "sketch" and not any(row.condition for row in rows):
            problem = f"{self._config.path} names no conditions, which modality {self._data.modality} needs"
            problems.append(DataError(problem, f"add a column {self._config.condition!r}, or name yours"))
        return problems

    def items(self, split: Split) -> Iterator[Item]:
        """In the order of rows. Raises DataError where the table cannot be read."""
        rows = self._rows()
        files = self._files(rows)
        is_drawn = self._validation(rows)
        first: dict[str, int] = {}
        for row in rows:
            number = first.setdefault(row.name, row.number)
            if self._split(row, is_drawn) == split:
                yield self._item(row, files, number if number != row.number else None)

    def _rows_of(self, splits: Sequence[Split]) -> Sequence[Pair]:
        """The rows of these splits."""
        rows = self._rows()
        if set(splits) == set(SPLITS):
            return rows
        is_drawn = self._validation(rows)
        return [row for row in rows if self._split(row, is_drawn) in splits]

    def _split(self, row: Pair, is_drawn: Callable[[str], bool]) -> Split:
        if row.split is not None:
            return _SPLIT_NAMES[row.split]
        return "validation" if row.image is not None and is_drawn(row.image) else "train"

    def _item(self, row: Pair, files: Mapping[str, Entry], repeats: int | None) -> FileItem:
        name, missing = row.name, [part for part in row.files if part not in files]
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
        image, condition, normal = (self._part(part, files) for part in (row.image, row.condition, normals))
        return FileItem.of(
            safe_key(name), f"row {row.number}: {row.image}", Reading.of(self._data, self._config.depth_unit_metres),
            [files.get(part) for part in row.files], fault=fault, image=image, condition=condition, normals=normal,
        )  # fmt: skip

    def _part(self, name: str | None, files: Mapping[str, Entry]) -> FilePart | None:
        if name is None or name not in files:
            return None
        path = files[name].path
        return UriFile(path) if self._is_apart(name) else TreeFile(self._root, path)

    def _is_apart(self, name: str) -> bool:
        """Whether a name leads out of the root: an absolute one, a URI, or one with enough `..`."""
        return _is_absolute(name) or name.startswith("../")

    def _validation(self, rows: Sequence[Pair]) -> Callable[[str], bool]:
        """Of the pictures, where the table has no splits."""
        return draw_validation((row.image for row in rows if row.image), self._config.validation_share)

    def _files(self, rows: Sequence[Pair]) -> dict[str, Entry]:
        """The files that rows name and that are there."""
        names = dict.fromkeys(part for row in rows for part in row.files)
        has_inside = not all(self._is_apart(name) for name in names)
        tree = open_tree(self._root).entries() if has_inside else None
        found = (
            (name, self._look_up(name) if self._is_apart(name) or tree is None else tree.get(name)) for name in names
        )
        return {name: entry for name, entry in found if entry is not None}

    def _look_up(self, name: str) -> Entry | None:
        """A file outside the root; nothing lies outside an archive."""
        if _is_absolute(name):
            return _look_up(name)
        if split_archive(self._root)[0] is not None:
            return None
        scheme, separator, root = self._root.rpartition("://")
        joined = posixpath.normpath(f"{root}/{name}") if separator else f"{root}/{name}"
        return _look_up(f"{scheme}{separator}{joined}")

    def _rows(self) -> list[Pair]:
        rows = list(self._checked_rows())
        if not rows:
            raise DataError(f"{self._config.path} has no rows", "a row names a picture and what goes with it")
        return rows

    def _checked_rows(self) -> Iterator[Pair]:
        """Raises DataError where a column is missing or splits are wrong."""
        path = self._config.path
        columns: dict[str, str | None] | None = None
        without_split: int | None = None
        with_split = False
        for number, record in enumerate(_read_table(path), 1):
            columns = columns or self._columns(record)
            image, condition, normals = (_path(_cell(record, columns[name])) for name in _COLUMNS[:3])
            row = Pair(number, image, condition, normals, _cell(record, columns["split"]))
            if row.split is None:
                without_split = without_split or number
            elif row.split not in _SPLIT_NAMES:
                raise DataError(f"{path}, row {number}: the split is neither train nor validation", "correct it")
            for name in row.files:
                _check_address(name, f"{path}, row {number}")
            with_split = with_split or row.split is not None
            yield row
        if with_split and without_split is not None:
            raise DataError(f"{path}, row {without_split} has no split, others have", "give all rows one, or none")

    def _columns(self, record: Mapping[str, Any]) -> dict[str, str | None]:
        """The table's own name of each column that is there.

        Names are alike whatever spaces surround them and whatever their case. Raises DataError where there is no column
        of pictures, and where one that may be missing has nearly the expected name.
        """
        found: dict[str, str | None] = {}
        own = [name for name in record if isinstance(name, str)]
        wanted = {part: getattr(self._config, part) for part in _COLUMNS}
        for part, name in wanted.items():
            exact = [column for column in own if column == name]
            alike = exact or [column for column in own if _plain(column) == _plain(name)]
            if len(alike) > 1:
                raise DataError(
                    f"{self._config.path} has several columns {name!r}: {', '.join(map(repr, alike))}",
                    "rename all but one",
                )
            found[part] = alike[0] if alike else None
            if alike:
                continue
            if part == "image":
                raise DataError(
                    f"{self._config.path} has no column {name!r} among its {len(own)}",
                    "set data.source.image to the column that names the pictures",
                )
            others = {_plain(column): column for column in own if _plain(column) not in map(_plain, wanted.values())}
            if close := difflib.get_close_matches(_plain(name), others, 1, _NEARLY):
                raise DataError(
                    f"{self._config.path} has no column {name!r}, but {others[close[0]]!r}",
                    f"set data.source.{part} to {others[close[0]]!r}, or rename that column",
                )
        return found


def _plain(name: str) -> str:
    return name.strip().casefold()


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    try:
        with open_regular(path) as stream:
            yield stream
    except (FileNotFoundError, IsADirectoryError, UnreadableFileError) as error:
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


def _cell(record: Mapping[str, Any], name: str | None) -> str | None:
    value = None if name is None else record.get(name)
    return ("" if value is None else str(value).strip()) or None


def _path(name: str | None) -> str | None:
    """A name as `open` understands it in the table's folder, without its `./`, `//` and backslashes."""
    if name is None or _is_absolute(name):
        return name
    return posixpath.normpath(name.replace("\\", "/"))


def _check_address(name: str, row: str) -> None:
    """Raise DataError for a name that holds credentials, or that leads to where pictures may not lie."""
    if holds_credentials(name):
        raise DataError(f"{row} holds a user's password or token", REMEDY)
    try:
        require_known_scheme(name)
    except ValueError as error:
        raise DataError(f"{row}: {error}", "copy the pictures to one of these first") from error


def _is_absolute(name: str) -> bool:
    return name.startswith("/") or "://" in name


def _look_up(uri: str) -> Entry | None:
    fs, path = storage.filesystem(uri)
    try:
        about = read_patiently(uri, lambda: fs.info(path))
    except OSError:
        return None
    return Entry(uri, int(about.get("size") or 0), object_version(about))
