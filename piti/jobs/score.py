"""Job `score`: generated pictures beside the ground truth -> metrics.json, report.html, grid.png, config.yaml."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from piti import storage
from piti.checkpoints import Checkpoint, release_checkpoint
from piti.job import JobContext, JobResult, JobSpec
from piti.jobs.ray_tasks import ray_connection, result_of

if TYPE_CHECKING:
    from eval.grid import PictureGrid
    from eval.pictures import NetworkIdentity
    from piti.evaluation.measurement import Evaluation, Measurement


def run(context: JobContext) -> JobResult:
    """Score in a Ray task, which gets a GPU where the config says so; the driver imports no torch.

    Raises DataError for missing or damaged pictures, CheckpointError for missing or damaged feature networks.
    """
    import ray

    cluster = context.config.cluster
    with ray_connection():
        task = ray.remote(_score_task).options(
            num_cpus=cluster.cpus_per_worker, num_gpus=1 if cluster.use_gpu else 0, max_retries=cluster.max_failures
        )
        return cast(JobResult, result_of(task.remote(context.spec)))


def _score_task(spec: JobSpec) -> JobResult:
    import torch

    if not spec.config.cluster.use_gpu:
        torch.set_num_threads(spec.config.cluster.cpus_per_worker)
    return score(JobContext(spec), "cuda" if spec.config.cluster.use_gpu else "cpu")


def score(context: JobContext, device: str = "cpu") -> JobResult:
    """Measure, write the report's files (each whole) and return the job's result. Raises as `run` does."""
    from piti.evaluation.grids import final_grids, stages_grid
    from piti.evaluation.measurement import Evaluation, Measurement
    from piti.evaluation.networks import open_extractor, open_perceptual_network
    from piti.evaluation.stored_arrays import StoredArrays

    spec, config = context.spec, context.config
    steps = 3
    context.progress(0, steps, "loading feature networks", force=True)
    extractor, network = open_extractor(config, device), open_perceptual_network(config, device)
    evaluation = Evaluation(config, spec.inputs["shards"], spec.inputs["samples"])
    arrays = StoredArrays(config.root)

    context.progress(1, steps, f"measuring {len(evaluation.keys)} pictures", force=True)
    measurement = Measurement(evaluation, config, extractor, network, arrays)
    stored = measure(spec, evaluation, measurement, (extractor.identity, network.identity))
    for name, metric in stored["metrics"].items():
        context.info(f"{name} {metric['value']:.4g} (95 %: {metric['low']} to {metric['high']})")

    context.progress(2, steps, "writing the report", force=True)
    grids = final_grids(evaluation, config, stored["per_picture"]["lpips"])
    if len(evaluation.stage_sets) > 1:
        grids.append(stages_grid(evaluation, config, Checkpoint.at(stored["checkpoint"])))
    files = publish_report(spec, stored, grids)
    for role in ("checkpoint", "upsampler"):
        release_checkpoint(spec.inputs[role], storage.name(spec.inputs["samples"]))
    context.progress(steps, steps, "done")
    kept = ("checkpoint", "step", "num_samples", "metrics", "comparison")
    return {
        **{name: stored[name] for name in kept},
        "comparable": stored["provenance"]["comparable"],
        "arrays_computed": arrays.num_computed,
        **files,
    }


def measure(
    spec: JobSpec,
    evaluation: Evaluation,
    measurement: Measurement,
    networks: tuple[NetworkIdentity, NetworkIdentity],
) -> dict[str, Any]:
    """The content of metrics.json."""
    from piti.evaluation.figures import metric_to_json
    from piti.evaluation.report import provenance

    metrics = measurement.metrics()
    checkpoint = Checkpoint.at(spec.inputs["checkpoint"])
    return {
        "checkpoint": checkpoint.uri,
        "step": checkpoint.step,
        "num_samples": len(evaluation.keys),
        "kinds": {kind: metric.name for kind, metric in metrics.items()},
        "metrics": {metric.name: metric_to_json(metric) for metric in metrics.values()},
        "comparison": {
            name: {kind: metric_to_json(metric) for kind, metric in distances.items()}
            for name, distances in measurement.comparison().items()
        },
        "per_picture": {"lpips": dict(zip(evaluation.keys, measurement.distances().tolist(), strict=True))},
        "provenance": provenance(spec, *networks),
    }


def publish_report(spec: JobSpec, stored: dict[str, Any], grids: list[PictureGrid]) -> dict[str, str]:
    """Write report.html, grid.png, config.yaml and, last, metrics.json. Returns where people look: report and grid."""
    import yaml

    from eval.grid import grid_png
    from eval.report import render_report
    from piti.evaluation.report import CONFIG_FILE, report_data

    report, grid = storage.join(spec.output, "report.html"), storage.join(spec.output, "grid.png")
    storage.write_bytes(grid, grid_png(grids[0]))
    config = yaml.safe_dump(spec.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    storage.write_bytes(storage.join(spec.output, CONFIG_FILE), config.encode("utf-8"))
    storage.write_bytes(report, render_report(report_data(spec, stored, grids)).encode("utf-8"))
    storage.write_json(storage.join(spec.output, "metrics.json"), stored)
    return {"report": report, "grid": grid}
