"""Pull a plug in the middle, start again: the run completes, and what was done is not done twice."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.cluster import submission_prefix
from piti import storage
from piti.checkpoints import checkpoints_of
from piti.config.presets import load_config
from piti.plan import Plan, Step
from tests.e2e.runs import FlowRun, Prefect, run_id, wait_for
from tests.e2e.tiny import tiny_overrides
from tests.running_stack import RunningStack

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("interrupted")


@pytest.fixture(scope="module")
def prefect(stack: RunningStack) -> Prefect:
    return Prefect(stack.environment)


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


def test_killed_driver_and_killed_serving_process(stack: RunningStack, prefect: Prefect, root: Path) -> None:
    overrides = tiny_overrides(root, **{"training__stage2__phases.0.steps": 160})
    plan = Plan(load_config("demo-sketch", overrides))
    interrupted = run_id(prefect.start("full-train", config="demo-sketch", overrides=overrides).stdout)
    wait_for("a first checkpoint of stage 2", lambda: checkpoints_of(plan.stage2.output), 300)
    done_before = {
        step.name: step.require_result() for step in (plan.shard, plan.degrade, plan.pretrain, plan.stage1) if step
    }
    (first,) = job_folders(root, plan.stage2)
    driver = driver_of(first)
    assert driver is not None
    driver.kill()
    wait_for("a second attempt", lambda: len(job_folders(root, plan.stage2)) == 2, 60)
    second = job_folders(root, plan.stage2)[-1]
    wait_for("its driver", lambda: driver_of(second), 60)

    stack.kill_serving_process()
    stack.up()
    run = prefect.run("full-train", config="demo-sketch", overrides=overrides)
    assert run.state == "COMPLETED", run.message
    assert len(job_folders(root, plan.stage2)) == 2, "the new run was to attach to the job, not to start another"
    result = plan.stage2.require_result()
    assert result["resumed_from_step"] > 0
    for step in (plan.shard, plan.degrade, plan.pretrain, plan.stage1):
        assert step is not None
        assert step.require_result() == done_before[step.name], f"{step.name} was done again"
    wait_for("the killed run to be marked", lambda: prefect.inspect(interrupted).state == "CRASHED", 180)
    assert "Run it again" in prefect.inspect(interrupted).message


def test_cancelling_a_run_stops_its_job(stack: RunningStack, prefect: Prefect, root: Path) -> None:
    overrides = tiny_overrides(root, seed=1, **{"training__pretrain__phases.0.steps": 100_000})
    plan = Plan(load_config("demo-sketch", overrides))
    assert plan.pretrain is not None
    flow_run = run_id(prefect.start("full-train", config="demo-sketch", overrides=overrides).stdout)
    wait_for("a checkpoint of pretraining", lambda: checkpoints_of(plan.pretrain.output), 180)
    assert training_workers(stack)
    (job,) = job_folders(root, plan.pretrain)
    assert prefect.command("flow-run", "cancel", flow_run).returncode == 0
    wait_for("the job's end", lambda: driver_of(job) is None, 90)
    wait_for("the cancelled state", lambda: prefect.inspect(flow_run).state == "CANCELLED", 60)
    wait_for("the end of its workers", lambda: not training_workers(stack), 60)


BAD_INPUT: list[tuple[str, dict[str, Any], str]] = [
    ("full-train", {"config": "dmeo"}, "unknown preset 'dmeo'; did you mean 'demo'"),
    ("full-train", {"overrides": {"training.stage2.batchsize": 4}}, "did you mean 'training.stage2.batch_size'"),
    ("prepare", {"overrides": {"seed": "many"}}, "seed: Input should be a valid integer"),
    ("train", {"overrides": {"cluster.num_workers": 8}}, "training wants 8 CPUs (8 workers), the cluster has 2"),
    ("prepare", {"overrides": {"data.source": {"kind": "paired", "images": "/nowhere"}}}, "/nowhere"),
    ("train", {"overrides": {"sampling.base_respacing": "fast"}}, "cannot read the respacing 'fast'"),
    ("evaluate", {"overrides": {"seed": 99}}, "has no stage 2 checkpoint yet"),
    ("full-train", {"start_from": "stage2", "overrides": {"seed": 99}}, "pretrain is not done"),
]


@pytest.fixture(scope="module")
def refused(prefect: Prefect, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[FlowRun, Path]]:
    """A run for each of BAD_INPUT, with its root; two at a time, since they mostly start processes."""
    roots = [tmp_path_factory.mktemp("refused") / "root" for _ in BAD_INPUT]

    def run(number: int) -> FlowRun:
        deployment, parameters, _ = BAD_INPUT[number]
        overrides = {"root": str(roots[number]), **parameters.get("overrides", {})}
        return prefect.run(deployment, **{**parameters, "overrides": overrides})

    with ThreadPoolExecutor(2) as pool:
        return list(zip(pool.map(run, range(len(BAD_INPUT))), roots, strict=True))


@pytest.mark.parametrize("number", range(len(BAD_INPUT)), ids=[message for _, _, message in BAD_INPUT])
def test_bad_input_is_one_clear_line(refused: list[tuple[FlowRun, Path]], number: int) -> None:
    run, root = refused[number]
    assert run.state == "FAILED"
    assert BAD_INPUT[number][2] in run.message
    assert "\n" not in run.message
    assert not root.exists(), "nothing half-written is left behind"
