"""Twenty faults in one full-train: it completes, with the weights of an undisturbed run, and leaves nothing behind.

Half an hour, so on demand (`make chaos`). The short form is tests/e2e/test_interruptions.py.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from piti import storage
from piti.checkpoints import Checkpoint, newest_step
from piti.config.presets import load_config
from piti.job import Followers
from piti.plan import Plan, Step
from piti.stack.ports import is_free
from piti.stack.processes import lives
from tests.e2e.runs import Prefect, wait_for
from tests.e2e.test_interruptions import driver_of, job_folders
from tests.e2e.tiny import tiny_overrides
from tests.running_stack import RunningStack

PATIENCE_SECONDS = 1200
STAGE_STEPS = {"pretrain": 200, "stage1": 200, "stage2": 1100, "upsampler": 60}
YEAR_SECONDS = 365 * 86400


def overrides(root: Path, sample_every_steps: int) -> dict[str, object]:
    stages: dict[str, object] = {"training__stage2__sample_every_steps": sample_every_steps}
    for stage, steps in STAGE_STEPS.items():
        stages[f"training__{stage}__phases.0.steps"] = steps
        stages[f"training__{stage}__checkpoint_every_steps"] = 20
    return tiny_overrides(root, **stages)


@dataclass
class Chaos:
    """A full-train in `root`, and what is done to it. `run` is the flow run that is to complete.

    Drawing while it trains makes its steps slow enough for all that is done, and changes nothing else.
    """

    stack: RunningStack
    prefect: Prefect
    root: Path
    sample_every_steps: int = 2
    run: str = ""

    @property
    def plan(self) -> Plan:
        return Plan(load_config("demo-sketch", overrides(self.root, self.sample_every_steps)))

    def start(self) -> str:
        """Ask for the run (again); its id."""
        self.run = self.prefect.start(
            "full-train", config="demo-sketch", overrides=overrides(self.root, self.sample_every_steps)
        )
        return self.run

    def attach(self) -> None:
        """Until the run follows the job that trains, which does not wait for it."""

        def follows() -> bool:
            jobs = [name for step in self.plan.training for name in job_folders(self.root, step)]
            return any(self.run in Followers(str(self.root / "jobs" / name)).names() for name in jobs)

        wait_for("the run to follow the job", follows, PATIENCE_SECONDS)

    def job(self, step: Step) -> str:
        """The newest job of a step, once its process is there."""

        def newest() -> str | None:
            jobs = sorted(job_folders(self.root, step), key=lambda name: int(name.rpartition("-")[2]))
            return jobs[-1] if jobs and driver_of(jobs[-1]) else None

        return str(wait_for(f"a job for {step.name}", newest, PATIENCE_SECONDS, 0.05))

    def kill_driver(self, step: Step) -> None:
        driver = driver_of(self.job(step))
        assert driver is not None
        driver.kill()

    def steps_taken(self) -> int:
        """Of the base's stages, by their newest checkpoints."""
        stages = [self.plan.pretrain, self.plan.stage1, self.plan.stage2]
        return sum(max(0, newest_step(step.output)) for step in stages if step is not None)

    def training(self) -> list[psutil.Process]:
        """Drivers and workers of whatever trains now; there is something."""

        def found() -> list[psutil.Process]:
            jobs = {name for step in self.plan.training for name in job_folders(self.root, step)}
            drivers = [driver for job in jobs if (driver := driver_of(job)) is not None]
            workers = self.stack.training_workers()
            return [*drivers, *workers] if drivers and workers else []

        return list(wait_for("training", found, PATIENCE_SECONDS))

    def run_process(self, flow_run: str) -> list[psutil.Process]:
        """The processes of a flow run."""
        found = []
        for process in self.stack.processes():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("PREFECT__FLOW_RUN_ID") == flow_run:
                    found.append(process)
        return found

    def end_of(self, processes: list[psutil.Process], what: str) -> None:
        wait_for(f"the end of {what}", lambda: not any(lives(process) for process in processes), 120)

    def kill_part_of_ray(self, name: str) -> None:
        """Only that process. All that trained ends by itself, so that nothing trains for nobody; then Ray comes back."""
        orphans = self.training()
        (part,) = [process for process in self.stack.processes() if process.name().startswith(name)]
        part.kill()
        self.end_of(orphans, f"what trained when {name} was killed")
        wait_for("the head's end", lambda: self.stack.record.processes["ray"].find() is None, 120)
        self.stack.up()


def worker(chaos: Chaos) -> None:
    chaos.training()
    chaos.stack.training_workers()[0].kill()


def driver(chaos: Chaos) -> None:
    chaos.training()[0].kill()


def worker_and_driver(chaos: Chaos) -> None:
    for process in chaos.training():
        process.kill()


def frozen_processes(chaos: Chaos) -> None:
    processes = chaos.training()
    for process in processes:
        process.suspend()
    time.sleep(10)
    for process in processes:
        process.resume()


def full_disk(chaos: Chaos) -> None:
    """No file can grow past 64 kB for a while: what a full disk is to a writer, for these processes alone."""
    processes = chaos.training()
    for process in processes:
        process.rlimit(psutil.RLIMIT_FSIZE, (2**16, psutil.RLIM_INFINITY))
    time.sleep(10)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.rlimit(psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))


def storage_away(chaos: Chaos) -> None:
    """The root is a link, which leads nowhere for a while."""
    real = chaos.root.readlink()
    for target in (chaos.root.parent / "not-mounted" / "root", real):
        if target is real:
            time.sleep(8)
        aside = chaos.root.with_name("aside")
        aside.symlink_to(target)
        aside.replace(chaos.root)


def raylet(chaos: Chaos) -> None:
    chaos.kill_part_of_ray("raylet")


def gcs(chaos: Chaos) -> None:
    chaos.kill_part_of_ray("gcs_server")


def ray_head(chaos: Chaos) -> None:
    chaos.stack.kill("ray")
    chaos.stack.up()


def prefect_server(chaos: Chaos) -> None:
    chaos.stack.kill("prefect")
    time.sleep(10)
    chaos.stack.up()


def frozen_prefect_server(chaos: Chaos) -> None:
    server = chaos.stack.record.processes["prefect"].find()
    assert server is not None
    server.suspend()
    time.sleep(20)
    server.resume()


def locked_database(chaos: Chaos) -> None:
    with contextlib.closing(sqlite3.connect(chaos.stack.home / "prefect" / "prefect.db", timeout=60)) as database:
        database.execute("BEGIN EXCLUSIVE")
        time.sleep(20)
        database.rollback()


def serving_process(chaos: Chaos) -> None:
    """With the flow run, which is its offspring. The next run attaches to the job that goes on."""
    chaos.stack.kill("serve")
    chaos.stack.up()
    chaos.start()
    chaos.attach()


def flow_run(chaos: Chaos) -> None:
    for process in chaos.run_process(chaos.run):
        process.kill()
    chaos.start()
    chaos.attach()


def one_of_two_runs(chaos: Chaos) -> None:
    first = chaos.run
    chaos.start()
    wait_for("the second run", lambda: chaos.prefect.inspect(chaos.run).state == "RUNNING", PATIENCE_SECONDS)
    for process in chaos.run_process(first):
        process.kill()
    chaos.attach()


def cancelled_run(chaos: Chaos) -> None:
    trained = chaos.training()
    chaos.prefect.cancel(chaos.run)
    chaos.end_of(trained, "the cancelled run's jobs")
    wait_for("its state", lambda: chaos.prefect.inspect(chaos.run).state == "CANCELLED", 120)
    chaos.start()


def deleted_run(chaos: Chaos) -> None:
    trained = chaos.training()
    chaos.prefect.request("DELETE", f"/flow_runs/{chaos.run}")
    chaos.end_of(trained, "the deleted run's jobs")
    chaos.start()


def clock_step(chaos: Chaos) -> None:
    """What a clock that was a year ahead, and was set back, leaves: files of the future, below the root and in the stack's home."""
    future = time.time() + YEAR_SECONDS
    for path in [*chaos.root.rglob("*"), *chaos.stack.home.glob("*")]:
        with contextlib.suppress(FileNotFoundError):
            os.utime(path, (future, future), follow_symlinks=False)


FAULTS: list[Callable[[Chaos], None]] = [
    worker, driver, frozen_processes, full_disk, storage_away, raylet, locked_database, prefect_server, serving_process,
    worker_and_driver, gcs, flow_run, frozen_prefect_server, clock_step, cancelled_run, one_of_two_runs, deleted_run,
    ray_head,
]  # fmt: skip


@pytest.fixture
def own_stack(tmp_path: Path) -> Iterator[RunningStack]:
    """A stack of its own, with an empty folder for temporary files."""
    with pytest.MonkeyPatch.context() as patch:
        (tmp_path / "tmp").mkdir()
        patch.setenv("TMPDIR", str(tmp_path / "tmp"))
        stack = RunningStack.start(tmp_path / "home")
    yield stack
    stack.stop()


@pytest.mark.timeout(5400)
def test_a_full_train_survives_twenty_faults(own_stack: RunningStack, tmp_path: Path) -> None:
    stack, prefect = own_stack, Prefect(own_stack.environment)
    undisturbed = Chaos(stack, prefect, tmp_path / "undisturbed", sample_every_steps=1000)
    assert prefect.wait(undisturbed.start(), PATIENCE_SECONDS).state == "COMPLETED"

    (tmp_path / "real").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "real")
    chaos = Chaos(stack, prefect, tmp_path / "root")
    chaos.start()
    degrade = chaos.plan.degrade
    assert degrade is not None
    for step in (chaos.plan.shard, degrade):
        chaos.kill_driver(step)
    for fault in FAULTS:
        before = chaos.steps_taken()
        wait_for(
            f"progress before {fault.__name__}", lambda before=before: chaos.steps_taken() > before, PATIENCE_SECONDS
        )
        assert chaos.plan.stage2.result() is None, f"training was over before {fault.__name__}"
        print(f"{time.strftime('%X')} step {chaos.steps_taken()}: {fault.__name__}", flush=True)
        fault(chaos)
    run = prefect.wait(chaos.run, 2 * PATIENCE_SECONDS)
    assert run.state == "COMPLETED", run.message

    for name in ("pretrain", "stage1", "stage2", "upsampler"):
        expected, found = (final_hashes(getattr(one.plan, name)) for one in (undisturbed, chaos))
        assert found == expected, f"{name} is not what it is undisturbed"
    assert report_figures(chaos.root) == report_figures(undisturbed.root)

    ports = stack.record.ports
    ray_folder = stack.record.ray_folder
    assert stack.stop() == []
    assert all(map(is_free, (ports.prefect, ports.ray, ports.ray_dashboard, ports.reports)))
    assert ray_folder.is_relative_to(stack.home) or not ray_folder.exists()
    assert list((tmp_path / "tmp").iterdir()) == []


def final_hashes(step: Step) -> dict[str, str]:
    """sha256 of the weights and averages of a stage's last checkpoint."""
    hashes = Checkpoint.at(step.require_result()["checkpoint"]).about["sha256"]
    return {name: sha256 for name, sha256 in hashes.items() if name.endswith(".safetensors")}


def report_figures(root: Path) -> object:
    (report,) = (found for found in (root / "reports").iterdir() if found.is_dir())
    return storage.read_json(str(report / "metrics.json"))["metrics"]
