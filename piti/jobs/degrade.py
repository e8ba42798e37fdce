"""Job `degrade`: low-resolution companions of every shard, K variants a picture, one Ray task a shard."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from piti import storage
from piti.config import DataConfig, DegradationConfig
from piti.data.decoding import DamagedPictureError, decode_image
from piti.data.degrading import draw_variant
from piti.data.items import SPLITS
from piti.data.manifest import ShardStats
from piti.data.publishing import ShardWriter, adopt_shards, published_shards, remove_leftovers, write_manifest
from piti.data.sharding import encode_png
from piti.data.shards import ShardSet
from piti.job import JobContext, JobResult
from piti.jobs.ray_tasks import ray_connection, run_tasks
from piti.provenance import FORMAT_VERSIONS
from piti.seeds import stable_hash

logger = logging.getLogger("piti")


def run(context: JobContext) -> JobResult:
    """Write the companion shards that are missing, then their manifest.

    Raises DataError where the shards are missing or damaged, or the disk is full.
    """
    started = time.monotonic()
    config, output, source = context.config, context.spec.output, context.spec.inputs["shards"]
    shards = ShardSet(source)
    remove_leftovers(output)
    names = [name for split in SPLITS for name in shards.shard_names(split)]
    settings = {"version": FORMAT_VERSIONS["degrade"], "scale": config.scale, "seed": config.seed}
    settings |= config.degradation.model_dump(mode="json")
    plans = {name: companion_plan(shards.stats[name], settings) for name in names}
    finished = published_shards(output, plans)
    finished |= adopt_shards(output, {name: plan for name, plan in plans.items() if name not in finished})
    context.info(f"{len(names)} shards to degrade, {len(finished)} of them already there")
    total = sum(shards.stats[name].num_samples for name in names)
    work = [
        (source, name, output, plans[name], config.data, config.degradation, config.scale, config.seed)
        for name in names
        if name not in finished
    ]
    if work:
        with ray_connection():
            for stats in run_tasks(degrade_shard, work):
                finished[stats.name] = stats
                done = sum(stats.num_samples for stats in finished.values())
                context.progress(done, total, f"{len(finished)} of {len(names)} shards")
    write_manifest(output, names, settings)
    return {
        "samples": {split: shards.num_samples(split) for split in SPLITS},
        "variants": config.degradation.variants,
        "shards": {split: len(shards.shard_names(split)) for split in SPLITS},
        "bytes": sum(stats.tar_bytes for stats in finished.values()),
        "seconds": round(time.monotonic() - started, 3),
    }


def companion_plan(stats: ShardStats, settings: dict[str, Any]) -> str:
    """A hash of everything that decides the bytes of a shard's companion."""
    content = {**settings, "tar_sha256": stats.tar_sha256}
    return storage.sha256_bytes(json.dumps(content, sort_keys=True).encode())


def degrade_shard(
    source: str,
    name: str,
    output: str,
    plan: str,
    data: DataConfig,
    degradation: DegradationConfig,
    scale: int,
    seed: int,
) -> ShardStats:
    """Degrade the pictures of one shard, same keys in the same order, and publish the companion. Same plan, same bytes."""
    cv2.setNumThreads(1)  # a shard is one core's work; others run beside it
    with ShardWriter(output, name, plan) as writer:
        for key, members in ShardSet(source).samples(name):
            try:
                image = decode_image(members)
            except DamagedPictureError as error:  # the loader skips the sample, but expects the same keys in both sets
                logger.warning("sample %s of %s has no variants: %s", key, source, error)
                writer.add(key, _companion(key, scale, []), source=name, width=0, height=0)
                continue
            height, width = image.shape[:2]
            companion = degrade_picture(image, key, data, degradation, scale, seed)
            writer.add(key, companion, source=name, width=width, height=height)
        return writer.publish()


def degrade_picture(
    image: NDArray[np.uint8], key: str, data: DataConfig, degradation: DegradationConfig, scale: int, seed: int
) -> dict[str, bytes]:
    """The files of one companion sample: `lr0.png` ... and `json` with each variant's recipe and crop.

    `image` uint8 (H, W, 3) as stored. Each variant is drawn from a generator seeded by (seed, key, variant) alone.
    """
    members: dict[str, bytes] = {}
    variants = []
    for variant in range(degradation.variants):
        rng = np.random.default_rng(stable_hash("degrade", seed, key, variant))
        low, recipe = draw_variant(image, data, degradation, scale, rng)
        members[f"lr{variant}.png"] = encode_png(low.image)
        crop = None if low.box is None else [low.box.left, low.box.top, low.box.side]
        variants.append({"crop": crop, "recipe": json.loads(recipe.to_json())})
    return members | _companion(key, scale, variants)


def _companion(key: str, scale: int, variants: list[dict[str, Any]]) -> dict[str, bytes]:
    """The JSON of a companion sample."""
    return {"json": json.dumps({"key": key, "scale": scale, "variants": variants}, sort_keys=True).encode()}
