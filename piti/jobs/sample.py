"""Job `sample`: draws the missing pictures of an evaluation's picture sets. A rerun draws only what is missing.

The driver plans; Ray tasks draw a tar each, in processes that keep their networks loaded.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from piti import storage
from piti.checkpoints import NETWORK_ROLES, claim_checkpoint
from piti.config import Config
from piti.data.shards import ShardSet
from piti.errors import DataError
from piti.evaluation.picture_sets import (
    Part,
    PictureSetName,
    covers,
    describe_sampling,
    drawn_ranges,
    num_wanted,
    plan_parts,
    set_folders,
    variants_of,
)
from piti.job import JobContext, JobResult, JobSpec
from piti.jobs.ray_tasks import ray_connection, result_of

if TYPE_CHECKING:
    from piti.evaluation.cascade import Cascade


def run(context: JobContext) -> JobResult:
    """Draw every part that is not there yet. Raises DataError or CheckpointError for damaged inputs."""
    started = time.monotonic()
    config, folders = context.config, set_folders(context.spec.inputs)
    available = count_conditions(context.spec)
    parts = missing_parts(config, folders, available)
    to_draw = sum(part.num_pictures for part in parts)
    counted = (name for name in folders if name != "base")  # drawn with `final`
    total = max(to_draw, sum(num_wanted(config, name, available) * len(variants_of(config, name)) for name in counted))
    context.info(f"{to_draw} of {total} pictures to draw, in {len(parts)} parts")
    if parts:
        done = total - to_draw
        for role in NETWORK_ROLES:  # the report job takes the claims back
            if role in context.spec.inputs:
                claim_checkpoint(context.spec.inputs[role], storage.name(context.spec.output))
        context.progress(done, total, "loading networks", force=True)
        with ray_connection():
            for part in draw_parts(context.spec, parts):
                done += part.num_pictures
                context.progress(done, total, f"{done} of {total} pictures")
    for name, folder in folders.items():
        _mark_done(folder, name, num_wanted(config, name, available), available)
    return {
        "sets": folders,
        "conditions": num_wanted(config, "final", available),
        "checkpoint": context.spec.inputs["checkpoint"],
        "upsampler": context.spec.inputs["upsampler"],
        **describe_sampling(config),
        "pictures_drawn": to_draw,
        "pictures_wanted": total,
        "seconds": round(time.monotonic() - started, 3),
    }


def count_conditions(spec: JobSpec) -> int:
    """The number of conditions of the validation split. Raises DataError if the split is empty."""
    count = ShardSet(spec.inputs["shards"]).num_samples("validation")
    if count == 0:
        raise DataError(f"{spec.inputs['shards']} has no validation split", "give the source a validation set")
    return count


def missing_parts(config: Config, folders: dict[PictureSetName, str], available: int) -> list[Part]:
    """The parts of all sets that are not drawn yet, expensive ones first. Parts of `final` also draw what `base` lacks."""
    drawn = {name: drawn_ranges(folder) for name, folder in folders.items()}
    parts: list[Part] = []
    for name in folders:
        planned = plan_parts(config, name, available, drawn[name])
        if name == "base":
            finals = [range(part.first, part.last) for part in parts if part.set == "final"]
            planned = plan_parts(config, name, available, [*drawn[name], *finals])
        parts += planned
    return parts


def _mark_done(folder: str, name: PictureSetName, count: int, available: int) -> None:
    """Write the marker of a set's folder: its name and the number of available conditions. Raises DataError for missing
    pictures."""
    if not covers(drawn_ranges(folder), range(count)):
        raise DataError(f"{folder} lacks pictures of the set {name} that were there before", "run again")
    storage.write_json(storage.join(folder, storage.MARKER), {"set": name, "available": available})


def draw_parts(spec: JobSpec, parts: Sequence[Part]) -> Iterator[Part]:
    """Have parts drawn by at most `cluster.num_workers` Ray tasks at a time; yields each when it is done.

    Ray runs a part again, up to `cluster.max_failures` times, if its process or node dies. A PitiError of a task is
    raised as it was; what still runs is cancelled when this stops early.
    """
    import ray

    cluster = spec.config.cluster
    task = ray.remote(
        num_cpus=cluster.cpus_per_worker,
        num_gpus=1 if cluster.use_gpu else 0,
        max_retries=cluster.max_failures,
        max_calls=0,  # a process lives on after its task, for the networks that it holds
    )(draw_part)
    waiting = list(reversed(parts))
    running: dict[Any, Part] = {}
    try:
        while waiting or running:
            while waiting and len(running) < cluster.workers.max:
                part = waiting.pop()
                running[task.remote(spec, part)] = part
            (finished,), _ = ray.wait(list(running), num_returns=1)
            part = running.pop(finished)
            result_of(finished)
            yield part
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


_loaded: dict[str, Cascade] = {}  # the cascade that this process draws with, by the job's fingerprint


def draw_part(spec: JobSpec, part: Part) -> int:
    """The Ray task: draw one part of the job."""
    import torch

    from piti.evaluation.cascade import Cascade

    cluster = spec.config.cluster
    if spec.fingerprint not in _loaded:
        _loaded.clear()
        if not cluster.use_gpu:
            torch.set_num_threads(cluster.cpus_per_worker)
        _loaded[spec.fingerprint] = Cascade(spec.config, spec.inputs, "cuda" if cluster.use_gpu else "cpu")
    return _loaded[spec.fingerprint].draw_part(part)
