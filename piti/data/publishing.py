"""Publishing shards: each is written aside and appears whole, or is copied from an earlier set; the manifest comes last."""

from __future__ import annotations

import json
import shutil
import tarfile
import tempfile
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
from webdataset import TarWriter

from piti import storage
from piti.data.manifest import MANIFEST, ShardStats, read_stats, stats_uri, write_stats, write_table
from piti.data.tars import shard_split
from piti.errors import DataError

_COPY_BYTES = 1 << 20
_MODE = 0o644
_ASIDE_PREFIX = "piti-shard-"
_ABANDONED_SECONDS = 6 * 3600.0  # a tar that has not grown for so long belongs to a process that was killed


class ShardWriter:
    """Writes one shard aside and publishes it: the tar first, its stats last. Nothing appears unless `publish` ends.
    Owner, mode and time of the tar's members are fixed, so equal samples give equal bytes.

    with ShardWriter(uri, "train-000000.tar", plan) as writer:
        writer.add(key, {"jpg": ..., "json": ...}, source="a/b.jpg", width=640, height=480)
        writer.reject(key, "picture is damaged", source="a/c.jpg")
        stats = writer.publish()

    Every method raises DataError where the disk is full.
    """

    def __init__(self, uri: str, name: str, plan: str) -> None:
        self._uri, self._name, self._plan = uri, name, plan
        self._split = shard_split(name)
        self._rows: list[dict[str, Any]] = []  # see manifest.SCHEMA
        self._aside_folder = _aside_folder(uri)
        with self._space():
            self._aside = _aside_path(uri, name)
            self._file = open(self._aside, "xb")  # noqa: SIM115 - closed by __exit__
        self._tar = TarWriter(self._file, user="", group="", mode=_MODE, mtime=0, encoder=False, compress=False)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with suppress(OSError):  # of a full disk, which has already been raised where it was met
                self._tar.close()
            with self._space():
                self._file.close()
        finally:
            self._aside.unlink(missing_ok=True)

    def _space(self) -> AbstractContextManager[None]:
        """Around writing the tar: names the local folder, also where the shards are remote."""
        return storage.disk_space(self._name, self._aside_folder)

    def add(
        self, key: str, members: Mapping[str, bytes], *, source: str, width: int, height: int, oddity: str | None = None
    ) -> None:
        """Append a sample. `members` maps a suffix without its leading dot (`cond.png`) to content; they are stored in
        the order of their suffixes. `oddity`: what is implausible about the sample.

        Raises ValueError for a key that readers would split elsewhere, and for a name that is too long for a plain tar
        header.
        """
        if not key or "." in key or "/" in key or len(key) > 80:
            raise ValueError(f"{key!r} cannot be a sample's key")
        for suffix in members:
            if len(f"{key}.{suffix}") > tarfile.LENGTH_NAME:
                raise ValueError(f"{key}.{suffix} is too long for a tar header")
        begin = self._tar.tarstream.offset
        with self._space():
            self._tar.write({"__key__": key, **members})
        self._record(
            key, "accepted", source, oddity, shard=self._name, offset=begin, size=self._tar.tarstream.offset - begin,
            width=width, height=height,
        )  # fmt: skip

    def reject(self, key: str, reason: str, *, source: str) -> None:
        """Record an item that gives no sample."""
        self._record(key, "rejected", source, reason)

    def leave_out(self, key: str, reason: str, *, source: str) -> None:
        """Record a good item that the config does not want."""
        self._record(key, "filtered", source, reason)

    def _record(self, key: str, status: str, source: str, reason: str | None, **of_a_sample: Any) -> None:
        row = {"key": key, "split": self._split, "status": status, "source": source, "reason": reason}
        self._rows.append(row | of_a_sample)

    def publish(self) -> ShardStats:
        """Make the shard appear. A shard of rejected items alone has stats and no tar."""
        with self._space():
            self._tar.close()
            self._file.close()
        with open(self._aside, "rb") as tar:
            for row in self._rows:
                if row["status"] == "accepted":
                    row["sha256"] = storage.sha256_bytes(tar.read(row["size"]))
        size, sha256 = self._aside.stat().st_size, storage.sha256_file(str(self._aside))
        counts = Counter(row["status"] for row in self._rows)
        stats = ShardStats(
            self._name, self._plan, size, sha256, counts["accepted"], counts["rejected"], counts["filtered"]
        )
        if stats.num_samples:
            storage.publish_file(self._aside, storage.join(self._uri, self._name))
        write_stats(self._uri, stats, self._rows)
        return stats


def published_shards(uri: str, plans: Mapping[str, str]) -> dict[str, ShardStats]:
    """Of the planned shards (name to plan), those that are published with the same plan."""
    listed, tars = set(storage.list_names(storage.join(uri, "stats"))), set(storage.list_names(uri))
    found: dict[str, ShardStats] = {}
    for name, plan in plans.items():
        record = read_stats(uri, name) if storage.name(stats_uri(uri, name)) in listed else None
        if record is not None and record[0].plan == plan and (record[0].num_samples == 0 or name in tars):
            found[name] = record[0]
    return found


def adopt_shards(uri: str, plans: Mapping[str, str]) -> dict[str, ShardStats]:
    """Copy planned shards (name to plan) that are published with the same plan in the sets beside this one.

    One picture more in a dataset makes another fingerprint and folder; thanks to the copies it costs one shard. A copy
    counts only if it has the recorded hash.
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
    """Whether a whole copy was published; False where the original is damaged or gone."""
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
    """Assemble the manifest of the named shards from their records and publish it.

    `about` (JSON-able) goes into the file's metadata. Raises DataError where a record is missing.
    """
    records = {name: _finished(uri, name) for name in names}
    stats = {name: record[0] for name, record in records.items()}
    content = {"about": about, "shards": [asdict(entry) for entry in stats.values()]}
    tables = (table for _, table in records.values())
    write_table(storage.join(uri, MANIFEST), tables, json.dumps(content, sort_keys=True))
    return stats


def _finished(uri: str, name: str) -> tuple[ShardStats, pa.Table]:
    record = read_stats(uri, name)
    if record is None:
        raise DataError(f"shard {name} of {uri} is not finished", "run again")
    return record


def _aside_folder(uri: str) -> Path:
    """The folder where tars are written first: the set's own if that is local, else the temporary folder."""
    return storage.local_path(uri) if storage.is_local(uri) else Path(tempfile.gettempdir())


def _aside_path(uri: str, name: str) -> Path:
    """A new file in `_aside_folder`. Deletes what killed workers left in the temporary folder."""
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
