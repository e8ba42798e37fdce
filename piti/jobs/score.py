"""Job `score`: generated pictures beside the ground truth -> metrics.json, report.html, grid.png."""

from __future__ import annotations

from typing import cast

from piti import storage
from piti.checkpoints import Checkpoint
from piti.job import JobContext, JobResult, JobSpec
from piti.jobs.ray_tasks import ray_connection, result_of


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
    """Measure, write the three files (each whole) and return the job's result. Raises as `run` does."""
    from eval.grid import grid_png
    from eval.report import render_report
    from piti.evaluation.measurement import Evaluation
    from piti.evaluation.networks import open_extractor, open_perceptual_network
    from piti.evaluation.report import metric_values, provenance, report_data, stage_labels

    spec, config = context.spec, context.config
    steps = 4
    context.progress(0, steps, "loading feature networks", force=True)
    extractor, network = open_extractor(config, device), open_perceptual_network(config, device)
    evaluation = Evaluation(config, spec.inputs["shards"], spec.inputs["samples"])
    checkpoint = Checkpoint.at(spec.inputs["checkpoint"])

    context.progress(1, steps, f"measuring {len(evaluation.keys)} pictures", force=True)
    metrics = evaluation.metrics(extractor, network)
    for name, metric in metrics.items():
        context.info(f"{name} {metric.value:.4g} (95 %: {metric.low:.4g} to {metric.high:.4g})")

    context.progress(2, steps, "comparing stages", force=True)
    comparison = evaluation.comparison(network)

    context.progress(3, steps, "writing the report", force=True)
    origin = provenance(spec, extractor, network)
    final_grid = evaluation.final_grid()
    grids = [final_grid]
    if len(evaluation.stage_sets) > 1:
        grids.append(evaluation.stages_grid(stage_labels(evaluation.stage_sets, checkpoint)))
    page = render_report(report_data(spec, checkpoint, origin, metrics, comparison, grids, evaluation.keys))
    values = {
        "checkpoint": checkpoint.uri,
        "step": checkpoint.step,
        "num_samples": len(evaluation.keys),
        "metrics": metric_values(metrics),
        "comparison": {name: metric_values(distances) for name, distances in comparison.items()},
    }
    report, grid = storage.join(spec.output, "report.html"), storage.join(spec.output, "grid.png")
    storage.write_bytes(grid, grid_png(final_grid))
    storage.write_bytes(report, page.encode("utf-8"))
    storage.write_json(storage.join(spec.output, "metrics.json"), {**values, "provenance": origin})
    context.progress(steps, steps, "done")
    return {**values, "comparable": origin["comparable"], "report": report, "grid": grid}
