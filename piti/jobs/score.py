"""Job `score`: measures generated pictures against the ground truth and writes metrics.json."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

from piti import storage
from piti.evaluation.evaluation_plan import METRICS_FILE
from piti.job import JobContext, JobResult, JobSpec
from piti.jobs.ray_tasks import ray_connection, result_of

if TYPE_CHECKING:
    from piti.evaluation.measurement import Evaluation, Measurement
    from piti.evaluation.networks import Networks


def run(context: JobContext) -> JobResult:
    """Score in Ray tasks; the driver imports no torch. A GPU is reserved only while networks process pictures.

    Raises DataError for missing or damaged pictures, CheckpointError for missing or damaged feature networks.
    """
    import ray

    cluster = context.config.cluster
    options = {"num_cpus": cluster.cpus_per_worker, "max_retries": cluster.max_failures}
    with ray_connection():
        if cluster.use_gpu:
            result_of(ray.remote(_task).options(num_gpus=1, **options).remote(context.spec, "cuda"))
        return cast(JobResult, result_of(ray.remote(_task).options(**options).remote(context.spec, "cpu")))


def _task(spec: JobSpec, device: str) -> JobResult:
    import torch

    if device == "cuda":
        measurement(JobContext(spec), device)[1].extract()
        return {}
    torch.set_num_threads(spec.config.cluster.cpus_per_worker)
    return score(JobContext(spec))


def measurement(context: JobContext, device: str) -> tuple[Evaluation, Measurement, Networks]:
    """The measurement for a job. Raises as `run` does."""
    from piti.evaluation.measurement import Evaluation, Measurement
    from piti.evaluation.networks import open_networks
    from piti.evaluation.stored_arrays import StoredArrays

    config = context.config
    context.progress(0, 2, "loading feature networks", force=True)
    networks = open_networks(config, device)
    evaluation = Evaluation(config, context.spec.inputs)
    context.progress(1, 2, f"measuring {len(evaluation.keys)} pictures", force=True)
    return evaluation, Measurement(evaluation, config, networks, StoredArrays(config.root)), networks


def score(context: JobContext) -> JobResult:
    """Measure on the CPU what is not stored yet, write metrics.json and return the job's result. Raises as `run` does."""
    evaluation, measured, networks = measurement(context, "cpu")
    stored = measure(context.spec, evaluation, measured, networks)
    for name, metric in stored["metrics"].items():
        context.info(f"{name} {metric['value']:.4g} (95 %: {metric['low']} to {metric['high']})")
    storage.write_json(storage.join(context.spec.output, METRICS_FILE), stored)
    context.progress(2, 2, "done")
    kept = ("checkpoint", "step", "num_samples", "metrics", "comparison")
    return {
        **{name: stored[name] for name in kept},
        "comparable": stored["provenance"]["comparable"],
        "arrays_computed": measured.num_computed,
    }


def measure(spec: JobSpec, evaluation: Evaluation, measurement: Measurement, networks: Networks) -> dict[str, Any]:
    """The content of metrics.json."""
    from piti.evaluation.figures import metric_to_json
    from piti.evaluation.report import provenance

    metrics = measurement.metrics()
    seen_by = networks.inception.identity, networks.lpips_trunk.identity
    origin = provenance(spec, *seen_by, evaluation.sets["final"].about(evaluation.keys[0]))
    return {
        "checkpoint": origin["base"]["uri"],
        "step": origin["base"].get("step", 0),
        "evaluated": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "num_samples": len(evaluation.keys),
        "kinds": {kind: metric.name for kind, metric in metrics.items()},
        "metrics": {metric.name: metric_to_json(metric) for metric in metrics.values()},
        "comparison": {
            name: {kind: metric_to_json(metric) for kind, metric in distances.items()}
            for name, distances in measurement.comparison().items()
        },
        "per_picture": {"lpips": dict(zip(evaluation.keys, measurement.distances().tolist(), strict=True))},
        "provenance": origin,
    }
