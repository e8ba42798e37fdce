"""The records of a set of shards: a row an item, in a small file for each tar, then in one manifest.

    <uri>/train-000000.tar ... validation-000000.tar ...    ordinary WebDataset
    <uri>/stats/train-000000.parquet                        rows of one shard; written after its tar, whole
    <uri>/manifest.parquet                                  all rows; written last. A set without it is not finished.

A row is a sample (where it lies, its hash, where it came from), or an item that became none, with the reason.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from piti import storage

MANIFEST = "manifest.parquet"
SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),  # accepted, rejected (unusable), filtered (not wanted)
        pa.field("reason", pa.string()),  # why it was rejected or filtered, or what is odd about a sample
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
    """A line of the manifest; see `SCHEMA`."""

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
    """Facts of a published shard. `plan` identifies what it was made from."""

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


def stats_uri(uri: str, name: str) -> str:
    """URI of the record of a shard."""
    return storage.join(uri, "stats", f"{name.removesuffix('.tar')}.parquet")


def write_stats(uri: str, stats: ShardStats, rows: Sequence[Row]) -> None:
    """Publish a shard's record. From then on the shard counts as done."""
    columns = {field.name: [getattr(row, field.name) for row in rows] for field in SCHEMA}
    table = pa.table(columns, schema=SCHEMA).replace_schema_metadata({"piti": json.dumps(asdict(stats))})
    content = io.BytesIO()
    pq.write_table(table, content, compression="zstd")
    storage.write_bytes(stats_uri(uri, stats.name), content.getvalue())


def read_stats(uri: str, name: str) -> tuple[ShardStats, pa.Table] | None:
    """The record of a published shard and its rows; None where it is not published (or its record is damaged)."""
    try:
        table = read_table(storage.read_bytes(stats_uri(uri, name)))
        return ShardStats(**json.loads(table.schema.metadata[b"piti"])), table
    except (FileNotFoundError, pa.ArrowInvalid, KeyError, TypeError, json.JSONDecodeError):
        return None


def read_table(data: bytes) -> pa.Table:
    """A Parquet file's rows. Read by this thread: pyarrow's own threads may outlive the interpreter, and abort it."""
    return pq.ParquetFile(pa.BufferReader(data)).read()
