"""SIGKILL to the driver of a data job that Ray runs as it is deployed: running again gives the undisturbed bytes.

Two kills a job, since each costs a job's start on Ray. Ten, at moments spread over the work, strike the same jobs without
Ray in tests/unit/data/test_data_killed.py.
"""

from __future__ import annotations

import hashlib
import random
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from piti import storage
from piti.config.presets import load_config
from piti.data.verify import verify_shards
from piti.job import JobSpec
from piti.plan import Plan, Step
from piti.stack.http import request_json
from tests.running_stack import RunningStack

pytestmark = pytest.mark.integration

_NUM_KILLS = 2
_SPAN_SECONDS = 2.0  # a kill comes so long, at most, after the job's first sign of life
_DEADLINE_SECONDS = 120.0
_ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})


class RayJob:
    """`python -m piti.jobs KIND --spec URI`, submitted to the stack's Ray."""

    def __init__(self, stack: RunningStack, spec: JobSpec) -> None:
        self._jobs, self._token = f"{stack.ray_url}/api/jobs", (stack.home / "ray-token").read_text()
        self._spec = storage.join(spec.folder, "spec.json")
        self._output = Path(spec.output)
        storage.write_json(self._spec, spec.model_dump(mode="json"))
        entrypoint = shlex.join([sys.executable, "-m", "piti.jobs", spec.kind, "--spec", self._spec])
        self._id = request_json(f"{self._jobs}/", self._token, {"entrypoint": entrypoint}, timeout_seconds=90)[
            "submission_id"
        ]

    def driver(self) -> psutil.Process:
        """The job's own process, once there is one."""
        return self._wait_for(self._find_driver)

    def wait_for_output(self) -> None:
        """Until the job has written anything, be it unfinished, or has ended."""
        self._wait_for(lambda: any(self._output.glob("*")) or self.status in _ENDED or None)

    @property
    def status(self) -> str:
        return str(request_json(f"{self._jobs}/{self._id}", self._token)["status"])

    def wait(self) -> str:
        """The status that the job ends with."""
        return self._wait_for(lambda: status if (status := self.status) in _ENDED else None)

    def _find_driver(self) -> psutil.Process | None:
        for process in psutil.process_iter(["cmdline"]):
            command = process.info["cmdline"] or []
            if command[1:3] == ["-m", "piti.jobs"] and command[-1] == self._spec:
                return process
        return None

    def _wait_for(self, find: Any) -> Any:
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while (found := find()) is None:
            assert time.monotonic() < deadline, f"{self._id} did not get there"
            time.sleep(0.05)
        return found


def hashes(folder: str) -> dict[str, str]:
    """Of every file but DONE.json, which tells times."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file() and path.name != storage.MARKER)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def spec_of(step: Step, config: Any, folder: Path) -> JobSpec:
    folder.mkdir(parents=True)
    return JobSpec.for_step(step, config, str(folder))


def plan_of(root: Path) -> tuple[Any, Plan]:
    source = {"kind": "bundled", "train_crops": 60, "validation_crops": 6}
    overrides = {
        "root": str(root), "data.source": source, "data.samples_per_shard": 6, "degradation.variants": 3,
    }  # fmt: skip
    config = load_config("demo-sketch", overrides)
    return config, Plan(config)


def test_killed_drivers_leave_what_an_undisturbed_run_makes(stack: RunningStack, tmp_path: Path) -> None:
    whole_config, whole = plan_of(tmp_path / "whole")
    broken_config, broken = plan_of(tmp_path / "broken")
    chance = random.Random(4)
    for name in ("shard", "degrade"):
        undisturbed, killed = getattr(whole, name), getattr(broken, name)
        assert RayJob(stack, spec_of(undisturbed, whole_config, tmp_path / name)).wait() == "SUCCEEDED"
        for number in range(_NUM_KILLS):
            job = RayJob(stack, spec_of(killed, broken_config, tmp_path / f"{name}-{number}"))
            driver = job.driver()
            job.wait_for_output()
            time.sleep(chance.uniform(0, _SPAN_SECONDS))
            driver.kill()
            assert job.wait() == "FAILED", "the kill came too late to disturb anything"
        assert RayJob(stack, spec_of(killed, broken_config, tmp_path / f"{name}-last")).wait() == "SUCCEEDED"
        assert hashes(killed.output) == hashes(undisturbed.output)
        assert list(verify_shards(killed.output)) == []
