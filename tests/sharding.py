"""Shards made in this process, one after the other."""

from __future__ import annotations

from piti.config import DataConfig
from piti.data.publishing import write_manifest
from piti.data.sharding import plan_shards, write_shard
from piti.data.shards import ShardSet
from piti.data.sources import open_source


def shard_here(data: DataConfig, uri: str, seed: int = 0) -> ShardSet:
    """What the job shard leaves at `uri`."""
    plans = plan_shards(open_source(data), data, seed)
    for plan in plans:
        write_shard(plan, data, uri)
    about = {name: getattr(data, name) for name in ("modality", "num_classes", "image_size", "geometry")}
    write_manifest(uri, list(plans.digests), about)
    return ShardSet(uri)
