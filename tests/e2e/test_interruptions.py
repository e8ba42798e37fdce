"""Pull a plug in the middle, start again: the run completes, and what was done is not done twice."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from flows.cluster import submission_prefix
from piti import storage
from piti.checkpoints import checkpoints_of
from piti.config.presets import load_config
from piti.plan import Plan, Step
from tests.e2e.runs import FlowRun, Prefect, wait_for
from tests.e2e.tiny import tiny_overrides
from tests.running_stack import RunningStack

pytestmark = pytest.mark.integration


def job_folders(root: Path, step: Step) -> list[str]:
    return [name for name in storage.list_names(str(root / "jobs")) if name.startswith(submission_prefix(step))]


def driver_of(job: str) -> psutil.Process | None:
    """The process of a Ray job's entrypoint."""
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "piti.jobs" in command and any(job in part for part in command) and "python" in command[0]:
            return process
    return None


def training_workers(stack: RunningStack) -> list[psutil.Process]:
    """Ray Train's worker processes, each of which holds its CPU until it is gone."""
    found = []
    for process in stack.processes():
        with contextlib.suppress(psutil.Error):
            if "TrainWorker" in "".join(process.cmdline()):
                found.append(process)
    return found


def kill_driver(root: Path, step: Step, when: Callable[[], object]) -> None:
    """SIGKILL to the process of the first job of a step, as soon as `when` gives something true."""
    wait_for(f"a job for {step.name}", lambda: job_folders(root, step), 480)
    (job,) = job_folders(root, step)
    driver = wait_for(f"the driver of {step.name}", lambda: driver_of(job), poll_seconds=0.05)
    wait_for(f"work of {step.name}", when, 300, poll_seconds=0.005)
    driver.kill()
    wait_for(f"a second attempt at {step.name}", lambda: len(job_folders(root, step)) == 2, 60)


def hashes(folder: str) -> dict[str, str]:
    """Of every file but DONE.json, which tells times."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file() and path.name != storage.MARKER)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def broken_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("interrupted")


@pytest.fixture(scope="module")
def interrupted(stack: RunningStack, prefect: Prefect, broken_root: Path) -> tuple[FlowRun, FlowRun]:
    """A run whose every job was killed, and that was then killed itself; and the run that took over."""
    overrides = interrupted_overrides(broken_root)
    plan = Plan(load_config("demo-sketch", overrides))
    assert plan.degrade is not None
    first = prefect.start("train", config="demo-sketch", overrides=overrides)
    for step in (plan.shard, plan.degrade):
        kill_driver(broken_root, step, lambda output=Path(step.output): output.exists() and any(output.iterdir()))
    kill_driver(broken_root, plan.stage2, lambda: checkpoints_of(plan.stage2.output))
    done_before = [step.require_result() for step in data_and_stage1(plan)]
    second = job_folders(broken_root, plan.stage2)[-1]
    wait_for("its driver", lambda: driver_of(second), 60)
    stack.kill_serving_process()
    stack.up()
    run = prefect.run("train", config="demo-sketch", overrides=overrides)
    assert [step.require_result() for step in data_and_stage1(plan)] == done_before, "a step was done again"
    return prefect.inspect(first), run


def interrupted_overrides(root: Path) -> dict[str, object]:
    stage2 = {"training__stage2__phases.0.steps": 160, "training__stage2__checkpoint_every_steps": 20}
    stage2["cluster__num_workers"] = 1
    return tiny_overrides(root, **stage2)


def data_and_stage1(plan: Plan) -> list[Step]:
    return [step for step in (plan.shard, plan.degrade, plan.pretrain, plan.stage1) if step is not None]


def test_a_new_run_attaches_to_the_job_and_goes_on(interrupted: tuple[FlowRun, FlowRun], broken_root: Path) -> None:
    plan = Plan(load_config("demo-sketch", interrupted_overrides(broken_root)))
    _, run = interrupted
    assert run.state == "COMPLETED", run.message
    assert run.tasks["train stage1"] == "Cached"
    assert len(job_folders(broken_root, plan.stage2)) == 2, "the new run was to attach to the job, not to start another"
    assert plan.stage2.require_result()["resumed_from_step"] > 0


def test_killed_data_jobs_leave_what_an_undisturbed_run_makes(
    interrupted: tuple[FlowRun, FlowRun], finished: FlowRun, root: Path, broken_root: Path
) -> None:
    """At one moment of each job; tests/unit/data/test_data_killed.py has ten, spread over the work."""
    whole, broken = (
        Plan(load_config("demo-sketch", overrides))
        for overrides in (tiny_overrides(root), interrupted_overrides(broken_root))
    )
    for one, other in zip(whole.preparation, broken.preparation, strict=True):
        assert hashes(one.output) == hashes(other.output)


def endless_overrides(root: Path, **more: object) -> dict[str, object]:
    """Pretraining that does not end by itself, on the shards of `finished`."""
    steps = {"training__pretrain__phases.0.steps": 100_000, "training__pretrain__checkpoint_every_steps": 50}
    return tiny_overrides(root, cluster__num_workers=1, **steps, **more)


def pretraining(overrides: dict[str, object]) -> Step:
    step = Plan(load_config("demo-sketch", overrides)).pretrain
    assert step is not None
    return step


def test_cancelling_a_run_stops_its_job(stack: RunningStack, prefect: Prefect, finished: FlowRun, root: Path) -> None:
    step = pretraining(overrides := endless_overrides(root))
    flow_run = prefect.start("full-train", config="demo-sketch", overrides=overrides)
    (job,) = wait_for("a job", lambda: job_folders(root, step))
    wait_for("pretraining", lambda: driver_of(job) and training_workers(stack))
    prefect.cancel(flow_run)
    wait_for("the job's end", lambda: driver_of(job) is None, 60)
    wait_for("the cancelled state", lambda: prefect.inspect(flow_run).state == "CANCELLED", 60)
    wait_for("the end of its workers", lambda: not training_workers(stack), 60)


@pytest.fixture(scope="module")
def pair(stack: RunningStack, prefect: Prefect, finished: FlowRun, root: Path) -> tuple[str, str, str]:
    """Two runs of one config, started at once, and the job that they share. The tests below take them apart, in order."""
    overrides = endless_overrides(root, training__pretrain__ema_rate=0.5)
    first, second = (prefect.start("train", config="demo-sketch", overrides=overrides) for _ in range(2))
    wait_for("both to follow", lambda: len(progress(prefect, first)) == len(progress(prefect, second)) == 1)
    (job,) = job_folders(root, pretraining(overrides))
    wait_for("pretraining", lambda: driver_of(job) and training_workers(stack))
    return first, second, job


def progress(prefect: Prefect, flow_run: str) -> list[dict[str, object]]:
    """The progress artifacts of a run's step `pretrain`."""
    found = prefect.artifacts(flow_run)
    return [one for one in found if one["type"] == "progress" and "-pretrain-" in (one["key"] or "")]


def test_two_runs_at_once_make_one_job(pair: tuple[str, str, str], prefect: Prefect, root: Path) -> None:
    first, second, job = pair
    assert {file.stem for file in (root / "jobs" / job / "followers").iterdir()} == {first, second}
    for run in (first, second):
        assert [one["key"] for one in progress(prefect, run)] == ["demo-sketch-pretrain-progress"]


def test_a_deleted_run_takes_nothing_from_the_other(pair: tuple[str, str, str], prefect: Prefect, root: Path) -> None:
    first, second, job = pair
    followers = root / "jobs" / job / "followers"
    prefect.request("DELETE", f"/flow_runs/{first}")
    wait_for("the deleted run to leave", lambda: [file.stem for file in followers.iterdir()] == [second], 60)
    assert driver_of(job) is not None


def test_a_run_waits_for_a_prefect_server_that_is_away(
    pair: tuple[str, str, str], stack: RunningStack, prefect: Prefect
) -> None:
    _, second, job = pair
    stack.kill("prefect")
    stack.up()
    (before,) = progress(prefect, second)
    wait_for("news of the run", lambda: progress(prefect, second)[0]["updated"] != before["updated"], 60)
    # As the server does by itself after 90 s without heartbeats.
    prefect.request("POST", f"/flow_runs/{second}/set_state", {"state": {"type": "CRASHED"}, "force": True})
    wait_for("the run to object", lambda: prefect.inspect(second).state == "RUNNING", 60)
    assert driver_of(job) is not None


def test_a_run_cancelled_while_nothing_serves_it_stops_its_job(
    pair: tuple[str, str, str], stack: RunningStack, prefect: Prefect
) -> None:
    _, second, job = pair
    stack.kill_serving_process()
    prefect.cancel(second)
    assert driver_of(job) is not None
    stack.up()
    wait_for("the job's end", lambda: driver_of(job) is None, 60)
    wait_for("the cancelled state", lambda: prefect.inspect(second).state == "CANCELLED", 60)


def test_the_killed_run_is_marked(interrupted: tuple[FlowRun, FlowRun], prefect: Prefect) -> None:
    """Last in this file: the server waits for three heartbeats, 90 s."""
    killed, _ = interrupted
    wait_for("the killed run to be marked", lambda: prefect.inspect(killed.id).state == "CRASHED", 180)
    assert "Run it again" in prefect.inspect(killed.id).message
