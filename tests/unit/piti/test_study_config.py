"""Studies: the shipped ones can be planned, and a wrong one says everything that is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from piti.config.presets import load_config
from piti.config.study import StudyConfig, position_on, read_study, study_names
from piti.errors import ConfigError
from piti.plan import Plan


def plans(study: StudyConfig, root: Path) -> dict[tuple[str, int | None], Plan]:
    return {
        (variant.name, seed): Plan(load_config(study.config, {"root": str(root), **overrides}))
        for variant, seed, overrides in study.runs()
    }


@pytest.mark.parametrize("name", study_names())
def test_every_variant_of_a_shipped_study_is_a_config(name: str, tmp_path: Path) -> None:
    study = read_study(name, [])
    assert study.name == name
    assert len(plans(study, tmp_path)) >= 4


@pytest.mark.parametrize("name", ["guidance", "samplers"])
def test_variants_of_sampling_train_once(name: str, tmp_path: Path) -> None:
    found = plans(read_study(name, []), tmp_path).values()
    assert len({step.fingerprint for plan in found for step in plan.training}) == 3


def test_the_papers_claims_train_only_what_they_are_about(tmp_path: Path) -> None:
    """Each variant against the published way: which training stages are others."""
    found = plans(read_study("paper-ablations", []), tmp_path)
    base = {step.name: step.fingerprint for step in found["as published", None].training}
    other = {
        name: {step.name for step in plan.training if step.fingerprint != base.get(step.name)}
        for (name, seed), plan in found.items()
        if seed is None
    }
    assert other == {
        "as published": set(),
        "from scratch": {"stage1", "stage2"},
        "one stage": {"stage1", "stage2"},
        "plain upsampler": {"upsampler"},
        "guidance 4, normalised": set(),
        "guidance 4, plain": set(),
    }
    scratch = found["64 photographs, from scratch", 1]
    assert scratch.pretrain is None
    assert scratch.upsampler == found["64 photographs, pretrained", 1].upsampler
    assert scratch.upsampler != found["64 photographs, pretrained", 2].upsampler
    published = found["as published", None].config
    for plan in found.values():
        assert sum(plan.config.training.stage1.phase_ends[-1:] + plan.config.training.stage2.phase_ends[-1:]) == sum(
            published.training.stage1.phase_ends[-1:] + published.training.stage2.phase_ends[-1:]
        ), "equal numbers of steps"


def write(folder: Path, **changes: object) -> str:
    study = {
        "name": "mine",
        "question": "why?",
        "config": "demo",
        "variants": [{"name": "a"}, {"name": "b"}],
        **changes,
    }
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(study))
    return str(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": [{"name": "a"}]}, "at least 2 items"),
        ({"variants": [{"name": "a"}, {"name": "a"}]}, "two variants have the same name"),
        ({"baseline": "aa"}, "baseline 'aa' is no variant"),
        ({"varaints": []}, "varaints: Extra inputs are not permitted"),
    ],
)
def test_a_wrong_study_is_refused_in_one_line(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_study(write(tmp_path, **changes), None)
    assert "\n" not in str(caught.value)


def test_an_unknown_study_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown study 'guidence'; did you mean 'guidance'"):
        read_study("guidence", [])
    with pytest.raises(ConfigError, match="lies outside of the folders"):
        read_study(write(tmp_path), ["/elsewhere"])


def test_seeds_are_runs_of_their_own(tmp_path: Path) -> None:
    variants = [{"name": "a", "overrides": {"data.max_samples": 3}, "seeds": [4, 5]}, {"name": "b"}]
    study = read_study(write(tmp_path, variants=variants, overrides={"sampling.num_samples": 9}), None)
    assert [(variant.name, seed, overrides) for variant, seed, overrides in study.runs()] == [
        ("a", 4, {"sampling.num_samples": 9, "data.max_samples": 3, "seed": 4}),
        ("a", 5, {"sampling.num_samples": 9, "data.max_samples": 3, "seed": 5}),
        ("b", None, {"sampling.num_samples": 9}),
    ]


def test_places_on_an_axis_are_numbers() -> None:
    config = load_config("demo", {"sampling.guidance_scale": 2.5})
    assert position_on(config, "sampling.guidance_scale") == 2.5
    for axis in (None, "sampling.base_sampler", "sampling.normalized_guidance", "nowhere.at.all"):
        assert position_on(config, axis) is None
