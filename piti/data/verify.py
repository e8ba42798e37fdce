"""Is a set of shards still what was written? And what to do where it is not.

To verify, every byte is read again. To repair, what says that damaged shards are done is deleted, so that the next run
writes them again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from piti import storage
from piti.data import decoding
from piti.data.manifest import MANIFEST, ShardStats, stats_uri
from piti.data.shards import ShardSet
from piti.errors import DataError


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

    `decode`: decode every sample, too, which finds what was damaged in the dataset already.
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
    damaged = 0
    with storage.open_read(shards.shard_uri(name)) as stream:
        for row in shards.rows(name):
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


def forget_unreadable_manifest(uri: str) -> list[str]:
    """Delete a manifest that is damaged, and DONE.json with it or without any manifest; URIs of what was deleted.

    Raises DataError where `uri` holds no set of shards, so that nothing else loses its DONE.json.
    """
    try:
        ShardSet(uri)
    except DataError:
        if not storage.exists(storage.join(uri, MANIFEST)) and not storage.list_names(storage.join(uri, "stats")):
            remedy = "give <root>/shards/<fingerprint> or <root>/degraded/<fingerprint>"
            raise DataError(f"{uri} is no set of shards", remedy) from None
        places = [storage.join(uri, storage.MARKER), storage.join(uri, MANIFEST)]
        return _delete(place for place in places if storage.exists(place))
    return []


def repair_shards(uri: str, problems: Iterable[ShardProblem]) -> list[str]:
    """Delete what keeps the shards with problems from being written again; URIs of what was deleted.

    That is each one's record in stats/, then DONE.json and the manifest, in this order: if it is interrupted, verifying
    still finds the rest. A tar that the manifest does not know is deleted itself. All other shards are kept.
    """
    known = ShardSet(uri).stats
    names = sorted({problem.shard for problem in problems})
    if not names:
        return []
    doomed = [stats_uri(uri, name) if name in known else storage.join(uri, name) for name in names]
    if any(name in known for name in names):
        doomed += [storage.join(uri, storage.MARKER), storage.join(uri, MANIFEST)]
    return _delete(place for place in doomed if storage.exists(place))


def _delete(places: Iterable[str]) -> list[str]:
    deleted = []
    for place in places:
        storage.remove(place)
        deleted.append(place)
    return deleted
