"""What the flows decide without any server: which checkpoints to evaluate, where a run may begin."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from prefect.client.schemas.objects import State

import flows.evaluate as evaluate
from flows.cluster import submission_prefix
from flows.evaluate import choose_targets
from flows.full_train import require_done
from flows.preflight import wanted_resources
from piti import storage
from piti.checkpoints import FORMAT, Claims, checkpoints_of, prune_checkpoints
from piti.config import ModelConfig
from piti.config.presets import load_config
from piti.errors import CheckpointError, DataError, PreflightError
from piti.evaluation.evaluation_plan import EvaluationPlan
from piti.evaluation.targets import make_target
from piti.job import JobSpec
from piti.models import build_model
from piti.models.pretrained import export_piti
from piti.plan import Plan
from piti.weights import weights_problems

CLAIMS = Claims("test")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(load_config("demo-sketch", {"root": str(tmp_path)}))


def add_checkpoint(run: str, step: int, stage: str = "stage2") -> str:
    uri = storage.join(run, f"step-{step:08d}")
    storage.write_json(
        storage.join(uri, storage.MARKER),
        {"format": FORMAT, "sha256": {"ema.safetensors": f"{run}{step}"}, "step": step, "stage": stage},
    )
    return uri


def chosen(plan: Plan, wanted: str | list[str]) -> list[str]:
    return [target.base.uri for target in choose_targets(plan, wanted, CLAIMS)]


def set_reported(plan: Plan, uri: str) -> None:
    storage.write_json(EvaluationPlan(plan, make_target(plan, uri)).report.marker, {"metrics": {}})


def test_no_checkpoint_at_all_names_what_to_run(plan: Plan) -> None:
    with pytest.raises(CheckpointError, match="run piti/full-train"):
        choose_targets(plan, "new", CLAIMS)


def test_no_upsampler_says_where_one_may_come_from(plan: Plan) -> None:
    base = add_checkpoint(plan.stage2.output, 10)
    for wanted in ("new", "latest", [base]):
        with pytest.raises(CheckpointError, match=r"no upsampler checkpoint yet .*give the parameter upsampler"):
            choose_targets(plan, wanted, CLAIMS)


def test_new_means_without_a_report(plan: Plan) -> None:
    first, second = (add_checkpoint(plan.stage2.output, step) for step in (10, 20))
    add_checkpoint(plan.upsampler.output, 5, "upsampler")
    add_checkpoint(plan.stage1.output, 5, "stage1")
    assert chosen(plan, "new") == [first, second]
    set_reported(plan, first)
    assert chosen(plan, "new") == [second]
    assert chosen(plan, "latest") == [second]
    assert chosen(plan, "all") == [first, second]
    set_reported(plan, second)
    assert chosen(plan, "new") == []


def test_a_run_that_finds_nothing_new_completes_and_says_so(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    add_checkpoint(plan.upsampler.output, 5, "upsampler")
    set_reported(plan, add_checkpoint(plan.stage2.output, 10))
    monkeypatch.setattr(evaluate, "preflight", lambda *_, **__: plan)
    monkeypatch.setattr(evaluate, "get_run_logger", lambda: evaluate.logger)
    state = evaluate.evaluate.fn("demo-sketch")
    assert isinstance(state, State)
    assert state.is_completed()
    assert str(state.message).startswith("nothing new")


def test_new_looks_at_every_run_under_the_root(plan: Plan, tmp_path: Path) -> None:
    """Another config's checkpoint gets the upsampler that was trained under that config."""
    add_checkpoint(plan.upsampler.output, 5, "upsampler")
    mine = add_checkpoint(plan.stage2.output, 10)
    config = load_config("demo-sketch", {"root": str(tmp_path), "seed": 3})
    other = Plan(config)
    theirs = add_checkpoint(other.stage2.output, 10)
    trained = add_checkpoint(other.upsampler.output, 7, "upsampler")
    folder = storage.join(str(tmp_path), "jobs", f"{submission_prefix(other.stage2)}1")
    storage.write_json(
        storage.join(folder, "spec.json"), JobSpec.for_step(other.stage2, config, folder).model_dump(mode="json")
    )
    targets = {target.base.uri: target.upsampler.uri for target in choose_targets(plan, "new", CLAIMS)}
    assert targets[theirs] == trained
    assert targets[mine].startswith(plan.upsampler.output)


def test_a_checkpoint_that_disappears_is_left_out(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training may prune a checkpoint between its being found and its being looked at."""
    there = add_checkpoint(plan.stage2.output, 20)
    add_checkpoint(plan.upsampler.output, 5, "upsampler")
    gone = storage.join(plan.stage2.output, "step-00000010")
    monkeypatch.setattr(evaluate, "finished_bases", lambda root: [gone, there])
    assert chosen(plan, "new") == [there]


def test_a_damaged_checkpoint_hides_no_other_of_its_run(plan: Plan) -> None:
    add_checkpoint(plan.upsampler.output, 5, "upsampler")
    good, damaged = (add_checkpoint(plan.stage2.output, step) for step in (10, 20))
    Path(storage.join(damaged, storage.MARKER)).write_text("{cut short")
    assert chosen(plan, "new") == [good]


def test_a_root_that_was_moved_keeps_its_pairs(plan: Plan, tmp_path: Path) -> None:
    """The upsampler that belongs to a base is found by the config its job was told, below the root of today."""
    here = tmp_path / "here"
    other = Plan(load_config("demo-sketch", {"root": str(here), "seed": 3}))
    base = add_checkpoint(other.stage2.output, 10)
    trained = add_checkpoint(other.upsampler.output, 7, "upsampler")
    folder = storage.join(str(here), "jobs", f"{submission_prefix(other.stage2)}1")
    spec = JobSpec.for_step(other.stage2, other.config, folder)
    storage.write_json(storage.join(folder, "spec.json"), spec.model_dump(mode="json"))
    here.rename(tmp_path / "there")
    base, trained = (uri.replace(str(here), str(tmp_path / "there")) for uri in (base, trained))
    assert make_target(plan, base).upsampler.uri == trained


def test_one_that_fails_does_not_end_the_others(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    add_checkpoint(plan.upsampler.output, 5, "upsampler")
    storage.write_json(plan.shard.marker, {})
    good, bad, also = (make_target(plan, add_checkpoint(plan.stage2.output, step)) for step in (1, 2, 3))
    tables: list[object] = []

    def evaluated(evaluation: EvaluationPlan, after: object) -> str:
        if evaluation.target is bad:
            raise DataError("bad is damaged")
        return f"report of {evaluation.target.base.uri}"

    monkeypatch.setattr(evaluate, "evaluate_target", evaluated)
    monkeypatch.setattr(evaluate, "create_table_artifact", lambda rows, **_: tables.append(rows))
    reports = [f"report of {target.base.uri}" for target in (good, also)]
    assert evaluate.evaluate_targets(plan, [good, bad, also], CLAIMS) == reports
    assert tables == [[{"checkpoint": report.removeprefix("report of "), "report": report} for report in reports]]
    with pytest.raises(DataError, match="bad is damaged"):
        evaluate.evaluate_targets(plan, [bad], CLAIMS)


@pytest.mark.parametrize("wanted", ["new", "all"])
def test_what_is_chosen_outlives_the_training_beside_it(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    """Both runs prune at every checkpoint: while the first target is drawn, the second waits. Afterwards, also after a
    failure, all are let go."""
    bases = [add_checkpoint(plan.stage2.output, step) for step in (1, 2)]
    upsampler = add_checkpoint(plan.upsampler.output, 5, "upsampler")
    storage.write_json(plan.shard.marker, {})

    def prune() -> list[str]:
        for run, stage in ((plan.stage2.output, "stage2"), (plan.upsampler.output, "upsampler")):
            add_checkpoint(run, 9, stage)
            prune_checkpoints(run, 1)
        return [uri for run in (plan.stage2.output, plan.upsampler.output) for uri in checkpoints_of(run)]

    def evaluated(evaluation: EvaluationPlan, after: object) -> str:
        assert {*bases, upsampler} < set(prune())
        if evaluation.target.base.uri == bases[1]:
            raise RuntimeError("the cluster burns")
        return "report"

    monkeypatch.setattr(evaluate, "evaluate_target", evaluated)
    with pytest.raises(RuntimeError, match="burns"):
        evaluate.choose_and_evaluate(plan, wanted)
    assert [storage.name(uri) for uri in prune()] == ["step-00000009"] * 2


def test_claims_that_would_run_out_are_renewed(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    base, now = add_checkpoint(plan.stage2.output, 1), time.time()
    add_checkpoint(plan.stage2.output, 2)
    with Claims("someone") as claims:
        claims.add(base)
        for hours in (13, 26):
            monkeypatch.setattr(time, "time", lambda hours=hours: now + 3600 * hours)
            claims.renew()
        prune_checkpoints(plan.stage2.output, 1)
        assert base in checkpoints_of(plan.stage2.output)


def test_evaluation_asks_for_no_training_weights_and_one_worker() -> None:
    config = load_config("demo-sketch", {"allow_stand_in_networks": False, "cluster.num_workers": 2})
    asked = " ".join(map(str, weights_problems(config, training=False)))
    assert "evaluation.inception is not set" in asked
    assert "vgg19" not in asked
    assert wanted_resources(config, training=False).cpus == config.cluster.cpus_per_worker
    assert wanted_resources(config).cpus == 2 * config.cluster.cpus_per_worker


def test_a_new_upsampler_makes_every_checkpoint_new(plan: Plan) -> None:
    base = add_checkpoint(plan.stage2.output, 10)
    add_checkpoint(plan.upsampler.output, 5, "upsampler")
    set_reported(plan, base)
    add_checkpoint(plan.upsampler.output, 6, "upsampler")
    assert chosen(plan, "new") == [base]


def test_uris_are_checked(plan: Plan, tmp_path: Path) -> None:
    add_checkpoint(plan.upsampler.output, 5, "upsampler")
    mine = add_checkpoint(str(tmp_path / "elsewhere"), 1)
    assert chosen(plan, [mine]) == [mine]
    with pytest.raises(CheckpointError, match="/nowhere is not a finished checkpoint"):
        choose_targets(plan, [mine, "/nowhere"], CLAIMS)
    with pytest.raises(CheckpointError, match=r"there is no file /nowhere/piti\.pt"):
        choose_targets(plan, ["/nowhere/piti.pt"], CLAIMS)


def test_the_first_upsampler_that_there_is(plan: Plan, tmp_path: Path) -> None:
    """Given; of the base's own training; the config's pretrained one; trained under this config."""
    base, file = add_checkpoint(plan.stage2.output, 10), str(tmp_path / "base.pt")
    pretrained, given = str(tmp_path / "upsample.pt"), add_checkpoint(str(tmp_path / "given"), 1)
    for path in (file, pretrained):
        Path(path).write_bytes(b"weights")
    with_one = Plan(load_config("demo-sketch", {"root": str(tmp_path), "pretrained.upsampler": {"path": pretrained}}))
    assert make_target(with_one, base).upsampler.uri == pretrained
    trained = add_checkpoint(with_one.upsampler.output, 5, "upsampler")
    assert make_target(with_one, base).upsampler.uri == trained
    assert make_target(with_one, file).upsampler.uri == pretrained
    assert make_target(with_one, file, given).upsampler.uri == given
    own = add_checkpoint(plan.upsampler.output, 5, "upsampler")
    assert make_target(plan, file).upsampler.uri == own
    pinned = {"path": pretrained, "sha256": storage.sha256_file(pretrained)}
    with_pin = Plan(load_config("demo-sketch", {"root": str(tmp_path), "pretrained.upsampler": pinned}))
    assert make_target(with_pin, file).upsampler.sha256 == {"file": pinned["sha256"]}
    Path(pretrained).write_bytes(b"other weights")
    with pytest.raises(CheckpointError, match="the config pins"):
        make_target(with_pin, file)


def test_a_file_of_other_sizes_is_refused_before_any_job(plan: Plan, tmp_path: Path) -> None:
    file = str(tmp_path / "small.pt")
    export_piti(build_model(ModelConfig(image_size=8, model_channels=32, channel_mult=(1,), num_res_blocks=1,
        attention_resolutions=(), num_head_channels=32, condition_channels=1, condition_size=16, encoder_width=16,
        encoder_layers=1, encoder_heads=1)), file)  # fmt: skip
    with pytest.raises(CheckpointError, match="does not fit the configured network"):
        choose_targets(plan, [file], CLAIMS, file)


def test_start_from_needs_what_comes_before(plan: Plan) -> None:
    for step in (plan.shard, plan.degrade):
        storage.write_json(step.marker, {})
    require_done(plan, "pretrain")
    require_done(plan, "upsampler")
    with pytest.raises(PreflightError) as caught:
        require_done(plan, "stage2")
    assert "pretrain is not done" in str(caught.value)
    assert "stage1 is not done" in str(caught.value)


def test_jobs_of_different_outputs_never_share_an_id(tmp_path: Path) -> None:
    here, there = (Plan(load_config("demo-sketch", {"root": str(tmp_path / name)})) for name in ("a", "b"))
    assert here.shard.fingerprint == there.shard.fingerprint
    assert submission_prefix(here.shard) != submission_prefix(there.shard)
    assert submission_prefix(here.shard) != submission_prefix(here.degrade)
