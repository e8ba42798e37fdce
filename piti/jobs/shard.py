"""Job `shard`: a dataset becomes tars and a manifest, one Ray task a shard. A rerun makes the missing shards only.

The step `shard` covers the whole dataset, the step `validation` its validation split alone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence

import pyarrow.compute as pc

from piti.data.items import SPLITS, Split
from piti.data.manifest import ShardStats, read_stats
from piti.data.publishing import adopt_shards, published_shards, remove_leftovers
from piti.data.sharding import ShardPlans, finish_set, plan_shards, write_shard
from piti.data.shards import ShardSet
from piti.data.sources import open_source
from piti.data.tars import names_of
from piti.errors import DataError
from piti.job import JobContext, JobResult
from piti.jobs.ray_tasks import ray_connection, run_tasks

_NAMED_REJECTIONS = 5
_HED_GPU_SHARE = 0.25  # one GPU keeps up with about four tasks, which also decode and encode


def run(context: JobContext) -> JobResult:
    """Write the shards that are missing, then the manifest.

    Raises DataError where a split is empty, too many items were rejected, or the disk is full.
    """
    started = time.monotonic()
    config, output = context.config, context.spec.output
    splits: Sequence[Split] = ("validation",) if context.spec.name == "validation" else SPLITS
    plans = plan_shards(open_source(config.data), config.data, config.seed, splits)
    remove_leftovers(output)
    digests = plans.digests
    finished = published_shards(output, digests)
    adopted = adopt_shards(output, {name: plan for name, plan in digests.items() if name not in finished})
    finished |= adopted
    total = sum(plans.num_items.values())
    drawn = f" of {total + plans.num_not_drawn}" if plans.num_not_drawn else ""
    copied = f" ({len(adopted)} copied from an earlier set)" if adopted else ""
    context.info(f"{total} items{drawn} in {len(digests)} shards, {len(finished)} of them already there{copied}")
    missing = [plan for plan in plans if plan.name not in finished]
    if missing:
        work = ((plan, config.data, output) for plan in missing)
        share = _HED_GPU_SHARE if config.cluster.use_gpu and config.data.sketch.detector == "hed" else 0.0
        with ray_connection():
            for stats in run_tasks(write_shard, work, num_gpus=share):
                finished[stats.name] = stats
                _report(context, finished, len(digests), total)
                _check_rejected(output, finished, total, config.data.max_rejected_share)
    _check_rejected(output, finished, total, config.data.max_rejected_share)
    written = finish_set(plans, config.data, output)
    _check_splits(output, written, plans)
    odd = odd_samples(output)
    for oddity in odd:
        context.info(f"look at this: {oddity}")
    return {**_result(written, plans.num_not_drawn, time.monotonic() - started), "odd": odd}


def _report(context: JobContext, finished: dict[str, ShardStats], num_shards: int, total: int) -> None:
    done = sum(stats.num_items for stats in finished.values())
    context.progress(done, total, f"{len(finished)} of {num_shards} shards")


def _check_rejected(output: str, finished: dict[str, ShardStats], total: int, allowed_share: float) -> None:
    rejected = sum(stats.num_rejected for stats in finished.values())
    if rejected <= allowed_share * total:
        return
    first: list[str] = []
    for name in sorted(finished):
        record = read_stats(output, name) if finished[name].num_rejected else None
        if record is not None:
            first += [
                f"{row['source']}: {row['reason']}" for row in record[1].to_pylist() if row["status"] == "rejected"
            ]
    raise DataError(
        f"{rejected} of {total} items cannot be used, more than data.max_rejected_share {allowed_share:g} allows: "
        + "; ".join(first[:_NAMED_REJECTIONS]) + ("; ..." if len(first) > _NAMED_REJECTIONS else ""),
        "repair or remove them, or raise data.max_rejected_share",
    )  # fmt: skip


def _check_splits(output: str, written: Mapping[str, ShardStats], plans: ShardPlans) -> None:
    for split in plans.num_items:
        if not any(written[name].num_samples for name in names_of(written, split)):
            raise DataError(
                f"none of the {plans.num_items[split]} items of the {split} split became a sample",
                f"`piti shards stats {output}` tells the reasons",
            )


def odd_samples(output: str) -> list[str]:
    """Warnings about conditions that are implausible in more than half of a set's samples; fewer are not reported."""
    manifest = ShardSet(output).manifest
    accepted = manifest.filter(pc.equal(manifest["status"], "accepted"))
    counts = Counter(accepted["reason"].drop_null().to_pylist())
    half = accepted.num_rows / 2
    return [f"{count} of {accepted.num_rows} samples: {oddity}" for oddity, count in counts.items() if count > half]


def _result(written: Mapping[str, ShardStats], num_not_drawn: int, seconds: float) -> JobResult:
    filled = {name: stats for name, stats in written.items() if stats.num_samples}
    by_split = {split: names_of(filled, split) for split in SPLITS}
    return {
        "samples": {split: sum(filled[name].num_samples for name in names) for split, names in by_split.items()},
        "rejected": sum(stats.num_rejected for stats in written.values()),
        "filtered": sum(stats.num_filtered for stats in written.values()),
        "not_drawn": num_not_drawn,
        "shards": {split: len(names) for split, names in by_split.items()},
        "bytes": sum(stats.tar_bytes for stats in filled.values()),
        "seconds": round(seconds, 3),
    }
