"""Pull a plug in the middle, start again: the run completes, and what was done is not done twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

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


def kill_driver(root: Path, step: Step, when: Callable[[], object]) -> None:
    """SIGKILL to the process of the first job of a step, as soon as `when` gives something true."""
    wait_for(f"a job for {step.name}", lambda: job_folders(root, step), 480)
    (job,) = job_folders(root, step)
    driver = wait_for(f"the driver of {step.name}", lambda: driver_of(job), poll_seconds=0.05)
    wait_for(f"work of {step.name}", when, 300, poll_seconds=0.005)
    driver.kill()
    wait_for(f"a second attempt at {step.name}", lambda: len(job_folders(root, step)) == 2, 60)


@pytest.fixture(scope="module")
def interrupted(stack: RunningStack, prefect: Prefect, finished: FlowRun, root: Path) -> tuple[FlowRun, FlowRun]:
    """A run whose job of stage 2 was killed, whose Ray head was lost, and that was then killed itself; and the next run.

    Everything before stage 2 is the output of `finished`. Kills of data jobs: tests/unit/data/test_data_killed.py.
    """
    overrides = interrupted_overrides(root)
    plan = Plan(load_config("demo-sketch", overrides))
    done_before = [step.require_result() for step in data_and_stage1(plan)]
    first = prefect.start("train", config="demo-sketch", overrides=overrides)
    kill_driver(root, plan.stage2, lambda: checkpoints_of(plan.stage2.output))
    second = job_folders(root, plan.stage2)[-1]
    wait_for("its driver", lambda: driver_of(second), 60)
    stack.kill("ray")
    stack.up()
    wait_for("a third attempt at stage 2", lambda: len(job_folders(root, plan.stage2)) == 3, 120)
    third = job_folders(root, plan.stage2)[-1]
    wait_for("its driver", lambda: driver_of(third), 120)
    assert driver_of(second) is None, "it went with its head"
    stack.kill_serving_process()
    stack.up()
    run = prefect.run("train", config="demo-sketch", overrides=overrides)
    assert [step.require_result() for step in data_and_stage1(plan)] == done_before, "a step was done again"
    return prefect.inspect(first), run


def interrupted_overrides(root: Path) -> dict[str, object]:
    stage2 = {"training__stage2__phases.0.steps": 160, "training__stage2__checkpoint_every_steps": 20}
    return tiny_overrides(root, **stage2)


def data_and_stage1(plan: Plan) -> list[Step]:
    return [step for step in (plan.shard, plan.degrade, plan.pretrain, plan.stage1) if step is not None]


def test_a_new_run_attaches_to_the_job_and_goes_on(interrupted: tuple[FlowRun, FlowRun], root: Path) -> None:
    plan = Plan(load_config("demo-sketch", interrupted_overrides(root)))
    _, run = interrupted
    assert run.state == "COMPLETED", run.message
    assert run.tasks["train stage1"] == "Cached"
    assert len(job_folders(root, plan.stage2)) == 3, "the new run was to attach to the job, not to start another"
    assert plan.stage2.require_result()["resumed_from_step"] > 0


def endless_overrides(root: Path, **more: object) -> dict[str, object]:
    """Pretraining that does not end by itself, on the shards of `finished`."""
    steps = {"training__pretrain__phases.0.steps": 100_000, "training__pretrain__checkpoint_every_steps": 50}
    return tiny_overrides(root, **(steps | more))


def pretraining(overrides: dict[str, object]) -> Step:
    step = Plan(load_config("demo-sketch", overrides)).pretrain
    assert step is not None
    return step


@dataclass(frozen=True)
class Endless:
    """Two runs of one config and the job that they share; a third run of another config and its job.

    All were started at once. The tests below take them apart, in order.
    """

    first: str
    second: str
    job: str
    lone: str
    lone_job: str


@pytest.fixture(scope="module")
def endless(stack: RunningStack, prefect: Prefect, finished: FlowRun, root: Path) -> Endless:
    shared = endless_overrides(root, training__pretrain__ema_rate=0.5)
    other = endless_overrides(root, training__pretrain__checkpoint_every_steps=1_000_000)
    allow_trainings(stack, prefect, 3)  # one that was killed above may hold its turn for a minute more
    first, second, lone = (
        prefect.start("train", config="demo-sketch", overrides=overrides) for overrides in (shared, shared, other)
    )
    wait_for("all to follow", lambda: all(len(progress(prefect, run)) == 1 for run in (first, second, lone)))
    (job,), (lone_job,) = (job_folders(root, pretraining(overrides)) for overrides in (shared, other))
    wait_for("pretraining", lambda: driver_of(job) and driver_of(lone_job) and len(stack.training_workers()) == 2)
    return Endless(first, second, job, lone, lone_job)


def allow_trainings(stack: RunningStack, prefect: Prefect, number: int) -> None:
    """So many side by side, as a person sets it in the UI; one where nobody does."""
    name = f"piti training on {urlsplit(stack.ray_url).netloc}"
    limits = prefect.request("POST", "/v2/concurrency_limits/filter", {})
    assert {limit["name"]: limit["limit"] for limit in limits}[name] == 1
    prefect.request("PATCH", f"/v2/concurrency_limits/{quote(name)}", {"limit": number})


def progress(prefect: Prefect, flow_run: str) -> list[dict[str, object]]:
    """The progress artifacts of a run's step `pretrain`."""
    found = prefect.artifacts(flow_run)
    return [one for one in found if one["type"] == "progress" and "-pretrain-" in (one["key"] or "")]


def test_two_runs_at_once_make_one_job(endless: Endless, prefect: Prefect, root: Path) -> None:
    both = {endless.first, endless.second}
    assert {file.stem for file in (root / "jobs" / endless.job / "followers").iterdir()} == both
    for run in both:
        assert [one["key"] for one in progress(prefect, run)] == ["demo-sketch-pretrain-progress"]


def test_cancelling_a_run_stops_its_job_and_no_other(
    endless: Endless, stack: RunningStack, prefect: Prefect, root: Path
) -> None:
    told = str(root / "jobs" / endless.lone_job / "progress.json")
    wait_for("its first steps", lambda: storage.exists(told) and storage.read_json(told)["done"] > 1)
    prefect.cancel(endless.lone)
    wait_for("the job's end", lambda: driver_of(endless.lone_job) is None, 60)
    assert checkpoints_of(pretraining(endless_overrides(root)).output), "it left no last checkpoint"
    wait_for("the cancelled state", lambda: prefect.inspect(endless.lone).state == "CANCELLED", 60)
    wait_for("the end of its worker", lambda: len(stack.training_workers()) == 1, 60)
    assert driver_of(endless.job) is not None


def test_a_deleted_run_takes_nothing_from_the_other(endless: Endless, prefect: Prefect, root: Path) -> None:
    followers = root / "jobs" / endless.job / "followers"
    prefect.request("DELETE", f"/flow_runs/{endless.first}")
    wait_for("the deleted run to leave", lambda: [file.stem for file in followers.iterdir()] == [endless.second], 60)
    assert driver_of(endless.job) is not None


def test_a_run_waits_for_a_prefect_server_that_is_away(endless: Endless, stack: RunningStack, prefect: Prefect) -> None:
    second, job = endless.second, endless.job
    stack.kill("prefect")
    stack.up()
    (before,) = progress(prefect, second)
    wait_for("news of the run", lambda: progress(prefect, second)[0]["updated"] != before["updated"], 60)
    # As the server does by itself after 90 s without heartbeats.
    prefect.request("POST", f"/flow_runs/{second}/set_state", {"state": {"type": "CRASHED"}, "force": True})
    wait_for("the run to object", lambda: prefect.inspect(second).state == "RUNNING", 60)
    assert driver_of(job) is not None


def test_a_run_cancelled_while_nothing_serves_it_stops_its_job(
    endless: Endless, stack: RunningStack, prefect: Prefect
) -> None:
    second, job = endless.second, endless.job
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
