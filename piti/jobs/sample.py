"""Job `sample`: pictures for the conditions of the validation split, part by part, restartable.

The driver only plans and watches; parts are drawn by Ray tasks, whose processes keep their networks loaded.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from piti import storage
from piti.checkpoints import claim_checkpoint
from piti.data.shards import ShardSet
from piti.errors import DataError
from piti.evaluation.picture_sets import SET_NAMES, Part, describe_sampling, plan_parts
from piti.job import JobContext, JobResult, JobSpec
from piti.jobs.ray_tasks import ray_connection, result_of

if TYPE_CHECKING:
    from piti.evaluation.cascade import Cascade


def run(context: JobContext) -> JobResult:
    """Draw every part whose tars are not there yet. Raises DataError or CheckpointError for damaged inputs."""
    started = time.monotonic()
    config, output = context.config, context.spec.output
    num_conditions = count_conditions(context.spec)
    parts = plan_parts(config, num_conditions)
    published = set(storage.list_names(output))
    missing = [part for part in parts if not published.issuperset(part.file_names)]
    total = sum(part.num_pictures for part in parts)
    done = total - sum(part.num_pictures for part in missing)
    context.info(f"{total} pictures to draw in {len(parts)} parts, {done} of them already there")
    if missing:
        for role in ("checkpoint", "upsampler"):  # the score job takes the claims back
            claim_checkpoint(context.spec.inputs[role], storage.name(output))
        context.progress(done, total, "loading networks", force=True)
        with ray_connection():
            for part in draw_parts(context.spec, missing):
                done += part.num_pictures
                context.progress(done, total, f"{done} of {total} pictures")
    return {
        "sets": {
            product: {
                "count": sum(part.num_pictures for part in parts if product in part.products),
                "files": [name for part in parts for name in part.file_names if name.startswith(f"{product}-")],
            }
            for product in SET_NAMES
            if any(product in part.products for part in parts)
        },
        "conditions": num_conditions,
        "checkpoint": context.spec.inputs["checkpoint"],
        "upsampler": context.spec.inputs["upsampler"],
        **describe_sampling(config),
        "pictures_drawn": sum(part.num_pictures for part in missing),
        "seconds": round(time.monotonic() - started, 3),
    }


def count_conditions(spec: JobSpec) -> int:
    """How many conditions of the validation split are drawn. Raises DataError if it is empty."""
    count = ShardSet(spec.inputs["shards"]).num_samples("validation")
    if count == 0:
        raise DataError(f"{spec.inputs['shards']} has no validation split", "give the source a validation set")
    wanted = spec.config.sampling.num_samples
    return count if wanted is None else min(count, wanted)


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
    return _loaded[spec.fingerprint].draw_part(part, spec.output)
