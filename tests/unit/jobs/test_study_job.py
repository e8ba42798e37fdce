"""A study's page from real reports: two variants and a seed that differ in guidance alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

from piti import storage
from piti.config import Config
from piti.config.study import StudiedRun, position_on
from piti.evaluation.picture_sets import plan_parts
from piti.job import JobContext, JobSpec
from piti.jobs import report, sample, score, study
from tests.unit.jobs.conftest import with_pictures

SpecMaker = Callable[..., JobSpec]
HOSTILE = '</td><script>alert(1)</script>"'


def reported(make: SpecMaker, config: Config, scale: float, folder: Path) -> tuple[StudiedRun, JobSpec]:
    """A variant drawn, scored and reported in this process."""
    sampling = config.sampling.model_copy(update={"guidance_scale": scale, "diversity_conditions": 0})
    config = config.model_copy(update={"sampling": sampling})
    inputs = with_pictures({}, str(folder / "pictures"), "final", "base")
    spec = make("sample", config=config, **inputs)
    for part in plan_parts(config, "final", 6):
        sample.draw_part(spec.model_copy(update={"fingerprint": str(scale)}), part)
    scored = make("score", config=config, **inputs, samples=spec.output)
    scored = scored.model_copy(update={"output": str(folder / "score")})
    score.score(JobContext(scored))
    told = make("report", config=config, **scored.inputs, score=scored.output)
    told = told.model_copy(update={"output": str(folder / "reports" / f"r{scale:g}")})
    report.run(JobContext(told))
    run: StudiedRun = {
        "variant": f"scale {scale:g}", "seed": None, "overrides": {"sampling.guidance_scale": scale},
        "position": position_on(config, "sampling.guidance_scale"), "report": told.output,
        "pictures": str(folder / "pictures" / "final"), "sample": spec.output,
    }  # fmt: skip
    return run, told


def test_a_page_of_two_variants(job_spec: SpecMaker, small_config: Config, tmp_path: Path) -> None:
    """The table has figures with intervals and paired differences: that of perceptual distances against SciPy's paired t
    interval of the pictures' own differences. The page shows every variant on the same conditions, one of a hostile name.
    """
    (first, told), (second, _) = (
        reported(job_spec, small_config, scale, tmp_path / f"{scale:g}") for scale in (1.0, 4.0)
    )
    second["variant"] += HOSTILE
    about = {
        "name": "guidance", "question": "Which scale?", "baseline": "scale 1", "axis": "sampling.guidance_scale",
        "runs": [first, second], "command": "prefect deployment run piti/study",
    }  # fmt: skip
    storage.write_json(str(tmp_path / "variants.json"), about)
    spec = job_spec("study", config=told.config, **told.inputs, study=str(tmp_path / "variants.json"))
    result, runs = study.run(JobContext(spec)), [first, second]
    folder = str(result["page"]).rpartition("/")[0]
    table = pq.read_table(f"{folder}/study.parquet").to_pylist()
    stored = [storage.read_json(f"{run['report']}/metrics.json") for run in runs]
    assert [(row["variant"], row["kind"]) for row in table] == [
        (run["variant"], kind) for run, metrics in zip(runs, stored, strict=True) for kind in metrics["kinds"]
    ]
    before, after = (np.array(list(metrics["per_picture"]["lpips"].values())) for metrics in stored)
    (row,) = [row for row in table if row["kind"] == "lpips" and row["variant"] == runs[1]["variant"]]
    interval = stats.ttest_rel(after, before).confidence_interval(0.95)
    assert row["value"] == pytest.approx(after.mean())
    assert row["difference"] == pytest.approx((after - before).mean())
    assert (row["difference_low"], row["difference_high"]) == pytest.approx((interval.low, interval.high))
    assert row["position"] == 4.0
    assert not row["comparable"]
    (frechet,) = [row for row in table if row["kind"] == "fid" and row["variant"] == runs[1]["variant"]]
    assert frechet["difference"] is not None
    assert frechet["difference_low"] is None, "no interval where none is known"
    assert [row for row in table if row["variant"] == "scale 1" and row["difference"] is not None] == []
    told = json.loads(storage.read_text(f"{folder}/study.json"))
    assert [{name: row[name] for name in told["figures"][0]} for row in table] == told["figures"]
    page = storage.read_text(str(result["page"]))
    assert page.count("<figcaption>scale 1</figcaption>") == 6
    assert page.count("<figcaption>ground truth</figcaption>") == 6
    assert 'alt="Fréchet distance against sampling.guidance_scale"' in page
    assert 'href="../r4/report.html"' in page
    assert "difference" in page
    assert "<script" not in page
    assert "scale 4&lt;/td&gt;&lt;script&gt;" in page
