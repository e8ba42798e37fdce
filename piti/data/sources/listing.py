"""A table of pairs: CSV, TSV or Parquet, a row a picture, with the files that go with it and its split."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from piti import storage
from piti.data.sources.base import Item, Split
from piti.data.sources.entries import Entry
from piti.data.sources.files import FileItem, FilePart, Reading, TreeFile, joint_identity
from piti.data.sources.keys import safe_key, validation_names
from piti.data.sources.reading import read_patiently
from piti.data.sources.trees import open_tree
from piti.errors import DataError, PitiError

if TYPE_CHECKING:
    from piti.config import DataConfig

_FORMAT_VERSION = 1
_SPLIT_NAMES: dict[str, Split] = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
}  # fmt: skip
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


class ListSourceConfig(BaseModel):
    """`path`: a .csv, .tsv or .parquet whose rows name files; `root`: what relative names are relative to (default:
    the folder of `path`), a folder, a prefix in object storage, or an archive. Absolute paths and URIs may be given too.

    `image`, `condition`, `normals` and `split` are names of columns; all but `image` may be missing from the table:
    without conditions sketches are detected, without splits a share of the pictures (drawn by name) is for validation.
    Splits are called train or training, and val, valid or validation.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["list"] = "list"
    path: str
    root: str | None = None
    image: str = "image"
    condition: str = "condition"
    normals: str = "normals"
    split: str = "split"
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.05
    depth_unit_metres: Annotated[float, Field(gt=0)] = 0.001


@dataclass(frozen=True)
class UriFile:
    """A file by its own absolute path or URI."""

    path: str

    def read(self) -> bytes:
        return storage.read_bytes(self.path)


@dataclass(frozen=True)
class Pair:
    """A row of the table, numbered from 1; empty cells are None."""

    number: int
    image: str | None
    condition: str | None
    normals: str | None
    split: str | None


class ListSource:
    """See ListSourceConfig. Every row is an item."""

    def __init__(self, config: ListSourceConfig, data: DataConfig) -> None:
        self._config, self._data = config, data
        self._root = config.root or config.path.rstrip("/").rpartition("/")[0] or "."

    def fingerprint(self) -> str:
        table = storage.sha256_bytes(self._content())
        files = [f"{name}|{entry.identity}" for name, entry in sorted(self._files(self._rows()).items())]
        return storage.sha256_bytes(
            "\n".join([str(_FORMAT_VERSION), self._root, table, *files]).encode("utf-8", "surrogateescape")
        )

    def problems(self) -> list[PitiError]:
        try:
            rows = self._rows()
            files = self._files(rows)
        except PitiError as error:
            return [error]
        problems: list[PitiError] = []
        if not any(row.image in files for row in rows):
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
        chosen = self._validation(rows)
        first: dict[str, int] = {}
        for row in rows:
            name = "|".join(part for part in (row.image, row.condition) if part) or f"row {row.number}"
            repeats = first.setdefault(name, row.number)
            mine = _SPLIT_NAMES[row.split] if row.split else ("validation" if row.image in chosen else "train")
            if mine == split:
                yield self._item(row, name, files, repeats if repeats != row.number else None)

    def _item(self, row: Pair, name: str, files: dict[str, Entry], repeats: int | None) -> FileItem:
        named = [part for part in (row.image, row.condition, row.normals) if part is not None]
        missing = [part for part in named if part not in files]
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
            safe_key(name), f"row {row.number}: {row.image}", joint_identity(*(files.get(part) for part in named)),
            Reading.of(self._data, self._config.depth_unit_metres), self._part(row.image), self._part(row.condition),
            self._part(normals), fault=fault,
        )  # fmt: skip

    def _part(self, name: str | None) -> FilePart | None:
        if name is None:
            return None
        return UriFile(name) if _is_absolute(name) else TreeFile(self._root, name)

    def _validation(self, rows: list[Pair]) -> set[str]:
        if any(row.split for row in rows):
            return set()
        return validation_names({row.image for row in rows if row.image}, self._config.validation_share)

    def _files(self, rows: list[Pair]) -> dict[str, Entry]:
        """The files that rows name and that are there."""
        names = {part for row in rows for part in (row.image, row.condition, row.normals) if part is not None}
        found = {name: entry for name in names if _is_absolute(name) and (entry := _look_up(name)) is not None}
        if any(not _is_absolute(name) for name in names):
            found |= {entry.path: entry for entry in open_tree(self._root).entries() if entry.path in names}
        return found

    def _content(self) -> bytes:
        try:
            return storage.read_bytes(self._config.path)
        except (FileNotFoundError, IsADirectoryError) as error:
            raise DataError(f"there is no list {self._config.path}", "correct data.source.path") from error

    def _rows(self) -> list[Pair]:
        config, records = self._config, _read_table(self._config.path, self._content())
        if not records:
            raise DataError(f"{config.path} has no rows", "a row names a picture and what goes with it")
        if config.image not in records[0]:
            columns = ", ".join(map(repr, records[0]))
            raise DataError(
                f"{config.path} has no column {config.image!r}, only {columns}",
                "set data.source.image to the column that names the pictures",
            )
        names = (config.image, config.condition, config.normals, config.split)
        rows = [Pair(number, *(_cell(record, name) for name in names)) for number, record in enumerate(records, 1)]
        for row in rows:
            if row.split is not None and row.split not in _SPLIT_NAMES:
                raise DataError(
                    f"{config.path}, row {row.number}: there is no split {row.split!r}", "use train and validation"
                )
        if len({row.split is None for row in rows}) > 1:
            number = next(row.number for row in rows if row.split is None)
            raise DataError(f"{config.path}, row {number} has no split, others have", "give all rows one, or none")
        return rows


def _read_table(path: str, content: bytes) -> list[dict[str, Any]]:
    if path.lower().endswith(".parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            rows: list[dict[str, Any]] = pq.read_table(pa.BufferReader(content)).to_pylist()
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path} is no whole Parquet file ({error})", "write it again") from error
        return rows
    delimiter = _DELIMITERS.get(path.lower()[-4:])
    if delimiter is None:
        raise DataError(f"{path} is neither .csv, .tsv nor .parquet", "convert it, or correct its suffix")
    try:
        return list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), delimiter=delimiter))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no readable table ({error})", "save it as UTF-8") from error


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
