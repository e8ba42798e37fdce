"""What of a config or of a network changes redraws, rescores or rewrites: exactly what it can change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from piti import storage
from piti.checkpoints import EMA_FILE, FORMAT
from piti.config.presets import load_config
from piti.evaluation.evaluation_plan import EvaluationPlan
from piti.evaluation.picture_sets import write_pictures
from piti.evaluation.targets import make_target
from piti.plan import Plan

SETS = {"final", "base", "diversity", "stage1", "untrained"}
STEPS = {"sample", "score", "report"}


def write_checkpoint(uri: str, digest: str, **about: Any) -> str:
    storage.write_json(storage.join(uri, storage.MARKER), {"format": FORMAT, "sha256": {EMA_FILE: digest}, **about})
    return uri


def planned(folder: Path, **overrides: Any) -> EvaluationPlan:
    """An evaluation of checkpoints below `folder`; overrides with dots written as two underscores."""
    stage1 = write_checkpoint(str(folder / "stage1" / "step-1"), "1", stage="stage1")
    base = write_checkpoint(
        str(folder / "stage2" / "step-1"), overrides.pop("weights", "2"), stage="stage2", origin={"model": stage1}
    )
    upsampler = write_checkpoint(
        str(folder / "upsampler" / "step-1"), overrides.pop("upsampler", "3"), stage="upsampler"
    )
    settings = {"root": str(folder), "sampling.num_samples": 40, "sampling.diversity_conditions": 4}
    settings |= {"evaluation.compare_stages": True} | {
        key.replace("__", "."): value for key, value in overrides.items()
    }
    plan = Plan(load_config("demo-sketch", settings))
    return EvaluationPlan(plan, make_target(plan, base, upsampler))


def prints(evaluation: EvaluationPlan) -> dict[str, str]:
    steps = (evaluation.sample, evaluation.score, evaluation.report)
    sets = {name: one.fingerprint for name, one in evaluation.sets.items()}
    return sets | {step.name: step.fingerprint for step in steps}


@pytest.mark.parametrize(
    ("change", "affected"),
    [
        ({"sampling__batch_size": 3, "sampling__pictures_per_part": 17, "cluster__num_workers": 1}, set()),
        ({"evaluation__grid_samples": 3}, {"report"}),
        ({"evaluation__published": {"fid": 1.5}}, {"report"}),
        ({"evaluation__resize": "clean-fid"}, {"score", "report"}),
        ({"sampling__upsampler_respacing": "9"}, {"final", "diversity"} | STEPS),
        ({"upsampler": "another"}, {"final", "diversity"} | STEPS),
        ({"weights": "another"}, {"final", "base", "diversity"} | STEPS),
        ({"sampling__guidance_scale": 3.0}, SETS | STEPS),
        ({"seed": 5}, SETS | STEPS),
        ({"sampling__num_samples": 50}, STEPS),
        ({"sampling__diversity_samples": 7}, {"diversity"} | STEPS),
        ({"training__stage2__batch_size": 8, "data__horizontal_flip": False}, set()),
    ],
)
def test_a_change_reaches_exactly_what_it_can_change(
    tmp_path: Path, change: dict[str, Any], affected: set[str]
) -> None:
    before, after = prints(planned(tmp_path)), prints(planned(tmp_path, **change))
    assert {name for name in before if before[name] != after[name]} == affected
    assert before.keys() == after.keys() == SETS | STEPS


def test_without_comparison_or_diversity_only_the_cascade_is_drawn(tmp_path: Path) -> None:
    few = {"sampling__diversity_conditions": 0, "evaluation__compare_stages": False}
    assert set(planned(tmp_path, **few).sets) == {"final", "base"}


def test_comparison_sets_are_those_of_the_checkpoints_own_training(tmp_path: Path) -> None:
    """Two checkpoints of one training share them; where stage 1 is not known, its set is left out."""
    first, later = planned(tmp_path), planned(tmp_path, weights="after more steps")
    assert first.sets["stage1"] == later.sets["stage1"]
    assert first.sets["untrained"] == later.sets["untrained"]
    storage.remove(str(tmp_path / "stage1"))
    plan = Plan(load_config("demo-sketch", {"root": str(tmp_path), "evaluation.compare_stages": True}))
    base, upsampler = (str(tmp_path / stage / "step-1") for stage in ("stage2", "upsampler"))
    alone = EvaluationPlan(plan, make_target(plan, base, upsampler))
    assert "stage1" not in alone.sets
    assert "untrained" in alone.sets


def test_a_set_is_done_once_every_wanted_picture_has_a_tar(tmp_path: Path) -> None:
    forty, fifty = (planned(tmp_path, sampling__num_samples=count).sets["final"] for count in (40, 50))
    assert forty.folder == fifty.folder
    for name in ("000000-000030.tar", "000030-000040.tar"):
        assert not forty.is_done()
        write_pictures(storage.join(forty.folder, name), {})
        storage.write_json(storage.join(forty.folder, storage.MARKER), {"available": 45})
    assert forty.is_done()
    assert not fifty.is_done()
    write_pictures(storage.join(forty.folder, "000040-000045.tar"), {})
    assert fifty.is_done(), "there are no more than 45"
    storage.remove(storage.join(forty.folder, "000000-000030.tar"))
    assert not forty.is_done(), "lost pictures are drawn again"
