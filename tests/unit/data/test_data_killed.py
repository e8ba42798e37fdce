"""SIGKILL at any moment of the jobs shard and degrade, ten times each: running again gives an undisturbed run's bytes."""

from __future__ import annotations

import hashlib
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE

import pytest

from piti import storage
from piti.config import Config
from piti.config.presets import load_config
from piti.data.verify import verify_shards
from piti.job import JobSpec
from piti.plan import Plan, Step

pytestmark = pytest.mark.slow

_NUM_KILLS = 10
_MAX_RUNS = 80

# `python -m piti.jobs KIND --spec URI` with one substitution: tasks run here, one after the other, and not on Ray.
# Asked for FORK, a job gets a process of its own that has everything imported and used once, so that its time is work.
_JOBS = """
import os, sys
from contextlib import nullcontext
from piti.jobs import degrade, shard
from piti.jobs.__main__ import main
def run_here(function, arguments, **resources):
    for entry in arguments:
        yield function(*entry)
for job in (shard, degrade):
    job.ray_connection, job.run_tasks = nullcontext, run_here
answers = os.fdopen(os.dup(1), "w")
def answer(number):
    print(number, file=answers, flush=True)
for line in sys.stdin:
    where, kind, spec, log = line.rstrip().split("|")
    sys.argv = ["piti.jobs", kind, "--spec", spec]
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    if where == "HERE":
        answer(main())
        continue
    child = os.fork()
    if not child:
        os._exit(main())
    answer(child)
    answer(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


class Jobs:
    """Runs jobs one at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", _JOBS], stdin=PIPE, stdout=PIPE, text=True, bufsize=1)

    def close(self) -> None:
        self._process.communicate(timeout=60)

    def ask(self, *words: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("|".join(words) + "\n")
        self._process.stdin.flush()

    def answer(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def has_answer(self, within_seconds: float) -> bool:
        return bool(select.select([self._process.stdout], [], [], within_seconds)[0])


@dataclass(frozen=True)
class Kill:
    """What a kill found: shards that were finished, and files that were half-written."""

    num_finished: int
    num_half_written: int


class Job:
    """A real job that writes to `output`."""

    def __init__(self, jobs: Jobs, step: Step, config: Config, output: Path) -> None:
        self.output, self._jobs = output, jobs
        folder = output.with_name(f"{output.name}-job")
        spec = JobSpec.for_step(step, config, str(folder)).model_copy(update={"output": str(output)})
        storage.write_json(str(folder / "spec.json"), spec.model_dump(mode="json"))
        self._words = (step.kind, str(folder / "spec.json"), str(folder / "log"))

    def run(self, where: str = "FORK") -> float:
        """To its end. How many seconds it took."""
        self._jobs.ask(where, *self._words)
        if where == "FORK":
            self._jobs.answer()
        started = time.monotonic()
        assert self._jobs.answer() == 0, Path(self._words[-1]).read_text()
        return time.monotonic() - started

    def run_killed(self, after_seconds: float) -> Kill | None:
        """What a kill left that came so long after the start; None where the job was done before."""
        self._jobs.ask("FORK", *self._words)
        process = self._jobs.answer()
        if not self._jobs.has_answer(after_seconds):
            os.kill(process, signal.SIGKILL)
        exitcode = self._jobs.answer()
        if exitcode == 0:
            return None
        assert exitcode == -signal.SIGKILL, Path(self._words[-1]).read_text()
        return Kill(len(list(self.output.glob("stats/[!.]*.parquet"))), len(leftovers(self.output)))


def leftovers(folder: Path) -> list[Path]:
    return list(folder.rglob(".*"))


def hashes(folder: Path) -> dict[str, str]:
    """Of every file, hidden ones too, but DONE.json, which tells times."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != storage.MARKER)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@dataclass(frozen=True)
class Undisturbed:
    """A root with both steps done, and how many seconds each takes in a process that has done it before."""

    jobs: Jobs
    plan: Plan
    config: Config
    seconds: dict[str, float]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Undisturbed]:
    """96 training pictures in 16 shards, 6 for validation; 3 variants of each."""
    source = {"kind": "bundled", "train_crops": 96, "validation_crops": 6}
    root = tmp_path_factory.mktemp("undisturbed")
    overrides = {
        "root": str(root), "data.source": source, "data.samples_per_shard": 6, "degradation.variants": 3,
    }  # fmt: skip
    config = load_config("demo-sketch", overrides)
    plan, jobs = Plan(config), Jobs()
    seconds = {}
    for name in ("shard", "degrade"):
        step: Step = getattr(plan, name)
        Job(jobs, step, config, Path(step.output)).run("HERE")
        again = Job(jobs, step, config, root / "again" / name)
        seconds[name] = again.run()
        assert hashes(again.output) == hashes(Path(step.output))
    yield Undisturbed(jobs, plan, config, seconds)
    jobs.close()


@pytest.mark.parametrize("name", ["shard", "degrade"])
def test_a_job_killed_ten_times_and_run_again_equals_undisturbed(
    undisturbed: Undisturbed, name: str, tmp_path: Path
) -> None:
    """Kills come at moments spread evenly over an undisturbed run's time. Where the job was faster, it starts anew."""
    step: Step = getattr(undisturbed.plan, name)
    expected = hashes(Path(step.output))
    job = Job(undisturbed.jobs, step, undisturbed.config, tmp_path / "killed")
    chance, finished_before = random.Random(4), 0
    kills: list[Kill] = []
    for _ in range(_MAX_RUNS):
        kill = job.run_killed(chance.uniform(0, undisturbed.seconds[name]))
        if kill is None:
            assert hashes(job.output) == expected, "a run that was done before its kill came after killed ones"
            shutil.rmtree(job.output)
            finished_before = 0
            continue
        assert kill.num_finished >= finished_before, "work done before a kill is kept"
        finished_before = kill.num_finished
        kills.append(kill)
        if len(kills) == _NUM_KILLS:
            break
    assert len(kills) == _NUM_KILLS
    found = [kill.num_finished for kill in kills]
    assert len(set(found)) >= 4, f"kills came at different moments of the work: {found}"
    assert any(kill.num_half_written for kill in kills), "and in the middle of writing"
    job.run()
    assert hashes(job.output) == expected
    assert leftovers(job.output) == []
    assert list(verify_shards(str(job.output))) == []
