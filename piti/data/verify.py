"""Verifying and repairing sets of shards.

Verifying reads every byte again. Repairing deletes the records of damaged shards, so that the next run writes these shards
again.
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
    """Something that is wrong with a shard. `key` None: with the whole tar.

    `came_damaged`: the sample was damaged when it was stored, so that writing the shard again changes nothing.
    """

    shard: str
    key: str | None
    what: str
    came_damaged: bool = False

    def __str__(self) -> str:
        return f"{self.shard}: {self.what}" if self.key is None else f"{self.shard}: sample {self.key} {self.what}"


def verify_shards(uri: str, decode: bool = False) -> Iterator[ShardProblem]:
    """Hash every tar of a set again. Yields what is damaged, missing or not in the manifest.

    `decode`: also decode every sample, which finds what was damaged when it was stored.
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
    """Samples of a tar with the right hash that do not decode."""
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
    """Samples of a tar with a wrong hash whose bytes have changed."""
    damaged = 0
    for row, data in shards.spans(name):
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
    """Delete DONE.json and the manifest where the manifest is missing or damaged. URIs of what was deleted.

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
    """Delete the records of the shards with problems, so that the next run writes them. URIs of what was deleted.

    First the shards' files in stats/, then DONE.json and the manifest: after an interruption, verifying still finds the
    rest. A tar that is not in the manifest is deleted itself. All other shards are kept.
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
