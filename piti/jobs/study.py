"""Job `study`: the reports of a study's variants -> study.html, study.json, study.parquet. No network is needed."""

from __future__ import annotations

from piti import storage
from piti.job import JobContext, JobResult


def run(context: JobContext) -> JobResult:
    """Write the study's files, then the leaderboard, which links it. Returns the page's URI and the figures.

    Raises DataError.
    """
    from eval.study import render_study
    from piti.evaluation.leaderboard import STUDY_FILE, rebuild_leaderboard
    from piti.evaluation.study import Scored, parquet_bytes, study_data, study_table

    spec = context.spec
    about = storage.read_json(spec.inputs["study"])
    scored = [Scored.of(run) for run in about["runs"]]
    data = study_data(about, scored, context.config, spec.inputs)
    records = study_table(data)
    page = storage.join(spec.output, "study.html")
    storage.write_bytes(page, render_study(data).encode("utf-8"))
    storage.write_bytes(storage.join(spec.output, "study.parquet"), parquet_bytes(records))
    told = {name: about[name] for name in ("name", "question", "baseline", "axis", "runs")}
    storage.write_json(storage.join(spec.output, STUDY_FILE), {**told, "figures": records})
    rebuild_leaderboard(context.config.root)
    return {"page": page, "figures": records}
