"""A set of shards: tars, a small record beside each, and the manifest that says which of them exist.

    <uri>/train-000000.tar ... validation-000000.tar ...    ordinary WebDataset
    <uri>/stats/train-000000.parquet                        rows of one shard; written after its tar, whole
    <uri>/manifest.parquet                                  all rows; written last. A set without it is not finished.

A row is a sample (where it lies, its hash, where it came from), or an item that is none with the reason.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from piti import storage
from piti.data.items import SPLITS
from piti.data.repair import repair_advice
from piti.data.tars import SampleTarWriter, names_of, shard_split, split_members
from piti.errors import DataError

MANIFEST = "manifest.parquet"
_COPY_BYTES = 1 << 20
_ASIDE_PREFIX = "piti-shard-"
_ABANDONED_SECONDS = 6 * 3600.0  # a tar grows with every sample: nobody writes to one that has not for so long
_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field(
            "status", pa.string(), nullable=False
        ),  # accepted, rejected (unusable), filtered (left out by the config)
        pa.field("reason", pa.string()),  # of a rejection or of being left out
        pa.field("shard", pa.string()),  # name of the tar; null for an item that is not in one
        pa.field("offset", pa.int64()),  # of the sample's first header in the tar
        pa.field("size", pa.int64()),  # bytes, headers included
        pa.field("sha256", pa.string()),  # of those bytes
        pa.field("source", pa.string(), nullable=False),
        pa.field("width", pa.int32()),  # of the photograph as found, in pixels
        pa.field("height", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Row:
    """A line of the manifest; see `_SCHEMA`."""

    key: str
    split: str
    status: str
    source: str
    reason: str | None = None
    shard: str | None = None
    offset: int | None = None
    size: int | None = None
    sha256: str | None = None
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True)
class ShardStats:
    """What is known of one shard once it is published. `plan` identifies what it was made from."""

    name: str
    plan: str
    tar_bytes: int
    tar_sha256: str
    num_samples: int
    num_rejected: int
    num_filtered: int = 0

    @property
    def num_items(self) -> int:
        """All items that were looked at."""
        return self.num_samples + self.num_rejected + self.num_filtered


class ShardWriter:
    """Writes one shard aside and publishes it: the tar first, its stats last. Nothing appears unless `publish` ends.

    with ShardWriter(uri, "train-000000.tar", plan) as writer:
        writer.add(key, {"jpg": ..., "json": ...}, source="a/b.jpg", width=640, height=480)
        writer.reject(key, "picture is damaged", source="a/c.jpg")
        stats = writer.publish()
    """

    def __init__(self, uri: str, name: str, plan: str) -> None:
        self._uri, self._name, self._plan = uri, name, plan
        self._split = shard_split(name)
        self._rows: list[Row] = []
        self._aside_folder = _aside_folder(uri)
        with self._space():
            self._aside = _aside_path(uri, name)
            self._tar = SampleTarWriter(self._aside, stays=storage.is_local(uri))

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._space():
                self._tar.__exit__(kind, error, trace)
        finally:
            self._aside.unlink(missing_ok=True)

    def _space(self) -> AbstractContextManager[None]:
        """Around writing the tar, which lies elsewhere than the shards where these are remote."""
        return storage.disk_space(self._name, self._aside_folder)

    def add(self, key: str, members: Mapping[str, bytes], *, source: str, width: int, height: int) -> None:
        """Append a sample; see SampleTarWriter.add."""
        with self._space():
            span = self._tar.add(key, members)
        row = Row(
            key, self._split, "accepted", source, shard=self._name, offset=span.offset, size=span.size_bytes,
            sha256=span.sha256, width=width, height=height,
        )  # fmt: skip
        self._rows.append(row)

    def reject(self, key: str, reason: str, *, source: str) -> None:
        """Record an item that gives no sample."""
        self._rows.append(Row(key, self._split, "rejected", source, reason=reason))

    def leave_out(self, key: str, reason: str, *, source: str) -> None:
        """Record a good item that the config does not want."""
        self._rows.append(Row(key, self._split, "filtered", source, reason=reason))

    def publish(self) -> ShardStats:
        """Make the shard appear. A shard of rejected items alone has stats and no tar.

        Raises DataError where the disk is full, as everything else here does.
        """
        with self._space():
            size, sha256 = self._tar.finish()
            self._tar.__exit__(None, None, None)
        counts = Counter(row.status for row in self._rows)
        stats = ShardStats(
            self._name, self._plan, size, sha256, counts["accepted"], counts["rejected"], counts["filtered"]
        )
        if stats.num_samples:
            storage.publish_file(self._aside, storage.join(self._uri, self._name))
        table = _table(self._rows).replace_schema_metadata({"piti": json.dumps(asdict(stats))})
        storage.write_bytes(stats_uri(self._uri, self._name), _parquet(table))
        return stats


def read_table(data: bytes) -> pa.Table:
    """A Parquet file's rows, read by this thread: a scanner's threads may outlive the interpreter, and abort it."""
    return pq.ParquetFile(pa.BufferReader(data)).read()


def stats_uri(uri: str, name: str) -> str:
    """Where the record of a shard lies."""
    return storage.join(uri, "stats", f"{name.removesuffix('.tar')}.parquet")


def read_stats(uri: str, name: str) -> tuple[ShardStats, pa.Table] | None:
    """The record of a published shard and its rows; None where it is not published (or its record is damaged)."""
    try:
        table = read_table(storage.read_bytes(stats_uri(uri, name)))
        return ShardStats(**json.loads(table.schema.metadata[b"piti"])), table
    except (FileNotFoundError, pa.ArrowInvalid, KeyError, TypeError, json.JSONDecodeError):
        return None


def published_shards(uri: str, plans: Mapping[str, str]) -> dict[str, ShardStats]:
    """Those of the planned shards (name to plan) that are there already and made from the same things."""
    listed, tars = set(storage.list_names(storage.join(uri, "stats"))), set(storage.list_names(uri))
    found: dict[str, ShardStats] = {}
    for name, plan in plans.items():
        record = read_stats(uri, name) if storage.name(stats_uri(uri, name)) in listed else None
        if record is not None and record[0].plan == plan and (record[0].num_samples == 0 or name in tars):
            found[name] = record[0]
    return found


def adopt_shards(uri: str, plans: Mapping[str, str]) -> dict[str, ShardStats]:
    """Copy planned shards (name to plan) that other sets beside this one hold already, made from the same things.

    So one picture more in a dataset, which makes another fingerprint and folder, costs one shard. A copy counts only
    if it has the recorded hash; what was copied is published like a shard just written.
    """
    parent, own = uri.rstrip("/").rpartition("/")[0], storage.name(uri)
    adopted: dict[str, ShardStats] = {}
    for sibling in storage.list_names(parent):
        other = storage.join(parent, sibling)
        wanted = {name: plan for name, plan in plans.items() if name not in adopted}
        if sibling == own or not wanted:
            continue
        for name, stats in published_shards(other, wanted).items():
            if _copy_shard(other, uri, stats):
                adopted[name] = stats
    return adopted


def _copy_shard(source: str, target: str, stats: ShardStats) -> bool:
    """Whether a whole copy was published; False where the original turns out to be damaged or gone."""
    aside = _aside_path(target, stats.name)
    try:
        if stats.num_samples:
            with (
                storage.disk_space(stats.name, aside.parent),
                storage.open_read(storage.join(source, stats.name)) as stream,
                open(aside, "wb") as copy,
            ):
                shutil.copyfileobj(stream, copy, _COPY_BYTES)
            if storage.sha256_file(str(aside)) != stats.tar_sha256:
                return False
            storage.publish_file(aside, storage.join(target, stats.name))
        storage.write_bytes(stats_uri(target, stats.name), storage.read_bytes(stats_uri(source, stats.name)))
    except FileNotFoundError:
        return False
    finally:
        aside.unlink(missing_ok=True)
    return True


def write_manifest(uri: str, names: Sequence[str], about: Mapping[str, Any]) -> dict[str, ShardStats]:
    """Assemble the manifest of the named shards from their records, one row group each, and publish it.

    `about` (JSON-able) goes into the file's metadata. One record is in memory at a time. Raises DataError where a
    record is missing.
    """
    every = {name: _finished(uri, name)[0] for name in names}
    metadata = {
        "piti": json.dumps({"about": about, "shards": [asdict(stats) for stats in every.values()]}, sort_keys=True)
    }
    aside = _aside_path(uri, MANIFEST)
    try:
        with (
            storage.disk_space(MANIFEST, aside.parent),
            pq.ParquetWriter(str(aside), _SCHEMA.with_metadata(metadata), compression="zstd") as writer,
        ):
            for name in names:
                writer.write_table(_finished(uri, name)[1].replace_schema_metadata(metadata))
        storage.publish_file(aside, storage.join(uri, MANIFEST))
    finally:
        aside.unlink(missing_ok=True)
    return every


def _finished(uri: str, name: str) -> tuple[ShardStats, pa.Table]:
    record = read_stats(uri, name)
    if record is None:
        raise DataError(f"shard {name} of {uri} is not finished", "run again")
    return record


@dataclass(frozen=True)
class SampleIndex:
    """Where the samples of a split lie, in order; `shard` numbers index `shards`. `sha256` is uint8 (n, 32)."""

    shards: list[str]
    keys: list[str]
    shard: np.ndarray[Any, np.dtype[np.int32]]
    offset: np.ndarray[Any, np.dtype[np.int64]]
    size: np.ndarray[Any, np.dtype[np.int64]]
    sha256: np.ndarray[Any, np.dtype[np.uint8]]

    def __len__(self) -> int:
        return len(self.keys)


class ShardSet:
    """A finished set of shards at a URI. Only what its manifest lists exists.

    Raises DataError where there is no manifest, or it cannot be read.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        try:
            data = storage.read_bytes(storage.join(self.uri, MANIFEST))
            self.manifest: pa.Table = read_table(data)
            content = json.loads(self.manifest.schema.metadata[b"piti"])
        except FileNotFoundError as error:
            raise DataError(f"{uri} is no finished set of shards (no {MANIFEST})", "run piti/prepare") from error
        except (pa.ArrowInvalid, KeyError, TypeError, json.JSONDecodeError) as error:
            raise DataError(f"{uri}/{MANIFEST} is damaged ({error})", repair_advice(self.uri)) from error
        self.about: dict[str, Any] = content["about"]
        self.stats = {entry["name"]: ShardStats(**entry) for entry in content["shards"]}

    @property
    def holds_companions(self) -> bool:
        """Whether these are degraded variants of another set's pictures."""
        return "modality" not in self.about

    @property
    def splits(self) -> list[str]:
        """Splits with at least one sample."""
        present = set(pc.unique(self._accepted["split"]).to_pylist())
        return [split for split in SPLITS if split in present]

    def num_samples(self, split: str) -> int:
        return int(self._of(split).num_rows)

    def keys(self, split: str) -> list[str]:
        """Keys in the order of the tars."""
        return cast(list[str], self._of(split)["key"].to_pylist())

    def shard_names(self, split: str) -> list[str]:
        """Names of a split's tars, those with samples, in order."""
        return names_of([name for name, stats in self.stats.items() if stats.num_samples], split)

    def shard_uri(self, name: str) -> str:
        return storage.join(self.uri, name)

    def rejected(self) -> list[tuple[str, str]]:
        """(where it came from, reason) of each rejected item."""
        table = self.manifest.filter(pc.equal(self.manifest["status"], "rejected"))
        return list(zip(table["source"].to_pylist(), table["reason"].to_pylist(), strict=True))

    def index(self, split: str) -> SampleIndex:
        """Where the samples of a split lie, in the order of `keys`."""
        table = self._of(split)
        names = self.shard_names(split)
        numbers = {name: number for number, name in enumerate(names)}
        shard = np.array([numbers[name] for name in table["shard"].to_pylist()], dtype=np.int32)
        offset, size = (table[column].to_numpy().astype(np.int64) for column in ("offset", "size"))
        digests = np.frombuffer(bytes.fromhex("".join(table["sha256"].to_pylist())), dtype=np.uint8).reshape(-1, 32)
        return SampleIndex(names, table["key"].to_pylist(), shard, offset, size, digests)

    def samples(self, name: str) -> Iterator[tuple[str, dict[str, bytes]]]:
        """(key, members) of one shard, in order, each checked against its hash.

        Raises DataError where the tar is missing or a sample is damaged.
        """
        rows = self.manifest.filter(pc.equal(self.manifest["shard"], name)).to_pylist()
        try:
            with storage.open_read(self.shard_uri(name)) as stream:
                for row in rows:
                    stream.seek(row["offset"])
                    data = stream.read(row["size"])
                    if storage.sha256_bytes(data) != row["sha256"]:
                        raise DataError(
                            f"sample {row['key']} in {self.shard_uri(name)} is damaged", repair_advice(self.uri)
                        )
                    yield row["key"], split_members(data, row["key"])
        except FileNotFoundError as error:
            raise DataError(f"{self.shard_uri(name)} is missing", repair_advice(self.uri)) from error

    @cached_property
    def _accepted(self) -> pa.Table:
        return self.manifest.filter(pc.equal(self.manifest["status"], "accepted"))

    def _of(self, split: str) -> pa.Table:
        return self._accepted.filter(pc.equal(self._accepted["split"], split))


def _aside_folder(uri: str) -> Path:
    """Where a tar is written before it is published: on the same filesystem if that is local."""
    return storage.local_path(uri) if storage.is_local(uri) else Path(tempfile.gettempdir())


def _aside_path(uri: str, name: str) -> Path:
    """A file to write a tar to before it is published. What killed workers left in the temporary folder is deleted."""
    folder = _aside_folder(uri)
    folder.mkdir(parents=True, exist_ok=True)
    if not storage.is_local(uri):
        storage.remove_older(folder, f".{_ASIDE_PREFIX}*.tmp", _ABANDONED_SECONDS)
        name = f"{_ASIDE_PREFIX}{name}"
    return folder / f".{name}.{uuid.uuid4().hex}.tmp"


def remove_leftovers(uri: str) -> None:
    """Delete half-written files that a killed run left in a local folder of shards. Only while nobody writes there."""
    if not storage.is_local(uri):
        return
    for folder in (storage.local_path(uri), storage.local_path(uri) / "stats"):
        for path in folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)


def _table(rows: Sequence[Row]) -> pa.Table:
    columns = {field.name: [getattr(row, field.name) for row in rows] for field in _SCHEMA}
    return pa.table(columns, schema=_SCHEMA)


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
