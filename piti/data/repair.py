"""What to do about damaged shards: forget what says that they are done, so that the next run writes them again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from piti import storage
from piti.errors import DataError

if TYPE_CHECKING:
    from piti.data.verification import ShardProblem


def repair_advice(uri: str) -> str:
    """The remedy for every kind of damage to a set of shards, companions included."""
    return (
        f"run `piti shards verify {uri} --repair`, then piti/prepare; where that finds nothing, --decode instead tells "
        "what came damaged or does not fit the config"
    )


def forget_unreadable_manifest(uri: str) -> list[str]:
    """Delete a manifest that is damaged, and DONE.json with it or without any manifest; URIs of what was deleted.

    Raises DataError where `uri` holds no set of shards, so that nothing else loses its DONE.json.
    """
    from piti.data.shards import MANIFEST, ShardSet

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
    from piti.data.shards import MANIFEST, ShardSet, stats_uri

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
