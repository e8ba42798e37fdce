"""Is a set of shards still what was written? Every byte is read again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow.compute as pc

from piti import storage
from piti.data.shards import ShardSet, ShardStats


@dataclass(frozen=True)
class ShardProblem:
    """Something that verification found. `key` None: the whole tar or the set is concerned.

    `came_damaged`: the dataset's own file is, so that writing the shard again changes nothing.
    """

    shard: str
    key: str | None
    what: str
    came_damaged: bool = False

    def __str__(self) -> str:
        return f"{self.shard}: {self.what}" if self.key is None else f"{self.shard}: sample {self.key} {self.what}"


def verify_shards(uri: str, decode: bool = False) -> Iterator[ShardProblem]:
    """Hash every tar of a set again and yield what is damaged, missing or should not be there.

    `decode`: decode every sample, too, which finds what was damaged in the dataset already (`data.check: headers`).
    Raises DataError where the manifest itself is missing or damaged.
    """
    shards = ShardSet(uri)
    present = {name for name in storage.list_names(uri) if name.endswith(".tar")}
    expected = {name: stats for name, stats in shards.stats.items() if stats.num_samples}
    for name, stats in expected.items():
        if name not in present:
            yield ShardProblem(name, None, "is missing")
        elif storage.sha256_file(shards.shard_uri(name)) != stats.tar_sha256:
            yield from _damage(shards, name, stats)
        elif decode:
            yield from _undecodable(shards, name)
    for name in sorted(present - set(expected)):
        yield ShardProblem(name, None, "is not in the manifest")


def _undecodable(shards: ShardSet, name: str) -> Iterator[ShardProblem]:
    """Which samples of a tar with the right hash are damaged all the same."""
    from piti.data import decoding  # torch and OpenCV are slow to import, and most verifying is hashing

    for key, members in shards.samples(name):
        try:
            if shards.holds_companions:
                for variant in range(decoding.num_variants(members)):
                    decoding.decode_variant(members, variant)
            else:
                decoding.decode_image(members)
                decoding.decode_condition(members)
        except decoding.DamagedPictureError as error:
            yield ShardProblem(name, key, f"came damaged: {error}", came_damaged=True)


def _damage(shards: ShardSet, name: str, stats: ShardStats) -> Iterator[ShardProblem]:
    """Which samples of a tar with a wrong hash are concerned."""
    rows = shards.manifest.filter(pc.equal(shards.manifest["shard"], name)).to_pylist()
    damaged = 0
    with storage.open_read(shards.shard_uri(name)) as stream:
        for row in rows:
            stream.seek(row["offset"])
            data = stream.read(row["size"])
            if len(data) < row["size"]:
                what = "is cut off"
            elif storage.sha256_bytes(data) != row["sha256"]:
                what = "has other bytes than were written"
            else:
                continue
            damaged += 1
            yield ShardProblem(name, row["key"], what)
    if not damaged:
        yield ShardProblem(
            name, None, f"has other bytes than were written ({stats.tar_bytes} expected), no sample is concerned"
        )
