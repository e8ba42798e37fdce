"""Job `report`: stored figures and pictures -> report.html, grid.png, config.yaml, metrics.json. No network is needed."""

from __future__ import annotations

from piti import storage
from piti.checkpoints import NETWORK_ROLES, release_checkpoint
from piti.evaluation.evaluation_plan import METRICS_FILE
from piti.job import JobContext, JobResult


def run(context: JobContext) -> JobResult:
    """Write the report's files, then the leaderboard. Returns the main figures and the files' URIs. Raises
    DataError."""
    import yaml

    from eval.grid import grid_png
    from eval.report import render_report
    from piti.evaluation.grids import final_grids, stages_grid
    from piti.evaluation.leaderboard import rebuild_leaderboard
    from piti.evaluation.measurement import Evaluation
    from piti.evaluation.report import CONFIG_FILE, report_data

    spec, config = context.spec, context.config
    stored = storage.read_json(storage.join(spec.inputs["score"], METRICS_FILE))
    evaluation = Evaluation(config, spec.inputs)
    grids = final_grids(evaluation, config, stored["per_picture"]["lpips"])
    if len(evaluation.stage_sets) > 1:
        grids.append(stages_grid(evaluation, config, stored["provenance"]))
    page = render_report(report_data(spec, stored, grids))
    report, grid = storage.join(spec.output, "report.html"), storage.join(spec.output, "grid.png")
    written = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    storage.write_bytes(grid, grid_png(grids[0]))
    storage.write_bytes(storage.join(spec.output, CONFIG_FILE), written.encode("utf-8"))
    storage.write_bytes(report, page.encode("utf-8"))
    storage.write_json(storage.join(spec.output, METRICS_FILE), stored)
    for role in NETWORK_ROLES:
        if role in spec.inputs:
            release_checkpoint(spec.inputs[role], storage.name(spec.inputs["samples"]))
    kept = ("checkpoint", "step", "num_samples", "metrics", "comparison")
    return {
        **{name: stored[name] for name in kept},
        "comparable": stored["provenance"]["comparable"],
        "report": report,
        "grid": grid,
        "leaderboard": rebuild_leaderboard(config.root),
    }
