"""The records of a set of shards: a row an item, in a small file for each tar, then in one manifest.

    <uri>/train-000000.tar ... validation-000000.tar ...    ordinary WebDataset
    <uri>/stats/train-000000.parquet                        rows of one shard; written after its tar, whole
    <uri>/manifest.parquet                                  all rows; written last. A set without it is not finished.

A row is a sample (where it lies, its hash, where it came from), or an item that became none, with the reason.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

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


def write_stats(uri: str, stats: ShardStats, rows: Sequence[Mapping[str, Any]]) -> None:
    """Publish a shard's record. From then on the shard counts as done. A row may lack what is null."""
    write_table(stats_uri(uri, stats.name), [pa.Table.from_pylist(rows, SCHEMA)], json.dumps(asdict(stats)))


def write_table(uri: str, tables: Iterable[pa.Table], about: str) -> None:
    """Publish rows as one Parquet file, a row group for each table; `about`, JSON, becomes its metadata."""
    schema, content = SCHEMA.with_metadata({"piti": about}), io.BytesIO()
    with pq.ParquetWriter(content, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table.replace_schema_metadata(schema.metadata))
    storage.write_bytes(uri, content.getvalue())


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
