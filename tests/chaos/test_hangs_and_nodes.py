"""Training that hangs, and nodes that go: minutes each, so they run on demand (`make chaos`)."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from piti import storage
from piti.checkpoints import newest_step
from piti.job import JobContext
from piti.runs import WORKERS_FILE
from piti.stack.processes import kill
from tests.e2e.runs import wait_for
from tests.integration.test_ray_training import OPTIONS, Driver, losses_of, shards, spec_of
from tests.running_stack import RunningStack
from tests.unit.training.test_training_resume import differences, everything

__all__ = ["shards"]  # a fixture that is used here


def test_workers_that_hang_leave_their_stacks_and_are_replaced(
    stack: RunningStack, shards: str, tmp_path: Path
) -> None:
    """Storage that answers no more, as a pipe that nobody writes to: both workers say where they are, and end."""
    own = tmp_path / "shards"
    shutil.copytree(shards, own)
    steps = {"training__pretrain__phases": [{"steps": 200, "learning_rate": 3e-4}]}  # more than are read ahead
    options = {**OPTIONS, **steps, "cluster__num_workers": 2, "cluster__stall_seconds": 20}
    driver = Driver(stack, spec_of(tmp_path, str(own), **options))
    marker = Path(driver.spec.output, "step-00000004", storage.MARKER)
    wait_for("the first checkpoint", marker.exists, poll_seconds=0.005)
    tars = sorted(own.glob("train-*.tar"))
    for tar in tars:
        tar.rename(tar.with_suffix(".kept"))
        os.mkfifo(tar)
    folder = Path(driver.spec.folder)
    wait_for("both to say so", lambda: len(list(folder.glob("stall-*.json"))) == 2)
    for tar in tars:
        tar.with_suffix(".kept").rename(tar)
    code, output = driver.wait()
    assert code == 0, output
    for rank in range(2):
        assert f"worker {rank} of pretrain made no step for 20 s" in output
    assert re.search(r"worker 1: +File .*loader.py", output), "the stacks do not show where"
    assert re.search(r"pretrain: worker \d of pretrain made no step .* restart 1 of 3", output)


class Nodes:
    """Further Ray nodes of the shared stack, on this machine; each holds one worker."""

    def __init__(self, stack: RunningStack) -> None:
        self._address = f"127.0.0.1:{stack.record.ports.ray}"
        # The stack's Ray is kept to this machine; these are the only nodes that join it.
        self._environment = {
            **stack.environment,
            "RAY_ADDRESS": self._address,
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
        }
        self._processes: list[subprocess.Popen[str]] = []

    def add(self) -> psutil.Process:
        """A node, which its process `ray start --block` stands for."""
        first_port = 30_000 + 1000 * len(self._processes)
        options = {
            "address": self._address, "num-cpus": CPUS, "object-store-memory": 100_000_000,
            "min-worker-port": first_port, "max-worker-port": first_port + 999, "dashboard-agent-listen-port": 0,
        }  # fmt: skip
        arguments = [f"--{name}={value}" for name, value in options.items()]
        self._processes.append(self._ray("start", "--block", "--disable-usage-stats", *arguments))
        node = psutil.Process(self._processes[-1].pid)
        wait_for("a node", lambda: any(child.name().startswith("raylet") for child in node.children()))
        return node

    def drain(self, node_id: str) -> None:
        """Announce that a node is about to be taken away, as an autoscaler does."""
        reason = ("--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot", "--deadline-remaining-seconds=60")
        draining = self._ray("drain-node", f"--address={self._address}", f"--node-id={node_id}", *reason)
        output, _ = draining.communicate(timeout=120)
        assert draining.returncode == 0, output

    def stop(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                kill([*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)])
            process.communicate()

    def _ray(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", RAY_ON_LOOPBACK, *arguments],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


CPUS = os.cpu_count() or 1  # of each node

# The command `ray`, which takes 127.0.0.1 for this machine's address, as the stack's head does.
RAY_ON_LOOPBACK = """
from ray._private import services
from ray.scripts.scripts import main

services.get_node_ip_address = lambda *_: "127.0.0.1"
main()
"""


@pytest.fixture
def nodes(stack: RunningStack) -> Iterator[Nodes]:
    nodes = Nodes(stack)
    yield nodes
    nodes.stop()


def test_a_killed_node_costs_no_bit(stack: RunningStack, nodes: Nodes, shards: str, tmp_path: Path) -> None:
    """Two workers on a node each. SIGKILL for one node, and another joins: weights, averages, optimizer and logged
    losses are those of an undisturbed run.
    """
    options = {
        **OPTIONS,
        "training__pretrain__phases": [{"steps": 40, "learning_rate": 3e-4}],
        "cluster__num_workers": 2,
        "cluster__cpus_per_worker": CPUS,  # another number of threads would add in another order
    }
    doomed = nodes.add()
    expected, _ = Driver(stack, spec_of(tmp_path / "undisturbed", shards, **options)).result()
    driver = Driver(stack, spec_of(tmp_path / "disturbed", shards, **options))
    wait_for("a checkpoint", lambda: newest_step(driver.spec.output) >= 4, poll_seconds=0.005)
    kill([*doomed.children(recursive=True), doomed])
    nodes.add()
    result, output = driver.result()
    assert "resuming from" in output, "the node was gone too late"
    context = JobContext(driver.spec)
    assert differences(everything(result["checkpoint"], context), everything(expected["checkpoint"], context)) == []
    assert losses_of(driver.spec.output) == losses_of(expected["checkpoint"].rpartition("/")[0])


def elastic(max_workers: int) -> dict[str, Any]:
    """Pretraining that does not end by itself, by at most so many workers, each of which takes a node."""
    return {
        "training__pretrain__phases": [{"steps": 100_000, "learning_rate": 3e-4}],
        "training__pretrain__checkpoint_every_steps": 10,
        "training__pretrain__batch_size": 4,
        "cluster__num_workers": {"min": 1, "max": max_workers},
        "cluster__cpus_per_worker": CPUS,
    }


def workers_of(run: str, number: int) -> dict[str, Any] | None:
    """What they said of themselves when they began, if there are so many."""
    about = storage.read_json_if_there(storage.join(run, WORKERS_FILE))
    return about if about is not None and len(about["workers"]) == number else None


LOOKING_OFTEN = """
import runpy

from piti.jobs import train

train._RESIZE_SECONDS = 10.0
runpy.run_module("piti.jobs", run_name="__main__")
"""


def test_a_node_that_joins_takes_part(stack: RunningStack, nodes: Nodes, shards: str, tmp_path: Path) -> None:
    """One worker on the head; a node joins, and two go on from a checkpoint."""
    driver = Driver(stack, spec_of(tmp_path, shards, **elastic(2)), ("-c", LOOKING_OFTEN))
    run = driver.spec.output
    try:
        wait_for("one worker", lambda: workers_of(run, 1))
        wait_for("a checkpoint", lambda: newest_step(run) >= 10)
        nodes.add()
        wait_for("two workers", lambda: workers_of(run, 2))
        before = newest_step(run)
        wait_for("progress", lambda: newest_step(run) > before)
        driver.signal(signal.SIGTERM)
        code, output = driver.wait()
    finally:
        driver.kill()
    assert code == 2, output
    assert re.search(r"resuming from .*step-\d+", output)


def test_nodes_that_are_killed_or_announce_their_end_are_done_without(
    stack: RunningStack, nodes: Nodes, shards: str, tmp_path: Path
) -> None:
    """Three workers on a node each. SIGKILL for a node: two go on from the last checkpoint. Ray's drain of another: a
    checkpoint, and one goes on from there. SIGTERM for the driver: a checkpoint, then the end, within a minute.
    """
    doomed, announced = nodes.add(), nodes.add()
    time.sleep(25)  # Ray's coordinator of elastic runs, if one is left of another test, looks at the nodes every 20 s
    driver = Driver(stack, spec_of(tmp_path, shards, **elastic(3)))
    run = driver.spec.output
    workers = partial(workers_of, run)
    try:
        wait_for("three workers", lambda: workers(3))
        wait_for("a checkpoint", lambda: newest_step(run) >= 10)
        kill([*doomed.children(recursive=True), doomed])
        wait_for("two workers", lambda: workers(2))
        before = newest_step(run)
        wait_for("progress", lambda: newest_step(run) > before)
        (node_id,) = re.findall(r"--node_id=(\w+)", " ".join(" ".join(one.cmdline()) for one in announced.children()))
        nodes.drain(node_id)
        wait_for("one worker", lambda: workers(1))
        before = newest_step(run)
        wait_for("progress", lambda: newest_step(run) > before)
        began_seconds = time.monotonic()
        driver.signal(signal.SIGTERM)
        code, output = driver.wait()
        assert time.monotonic() - began_seconds < 60
    finally:
        driver.kill()
    assert code == 2, output
    assert "a node that it runs on is about to go; going on elsewhere" in output
    (resumed,) = re.findall(r"resuming from .*step-(\d+)\n(?!.*resuming from)", output, re.DOTALL)
    assert int(resumed) % 10, "not from a checkpoint that the drain asked for"
    failure = storage.read_json(storage.join(driver.spec.folder, "error.json"))
    assert "SIGTERM" in failure["reason"]
    assert failure["retryable"]
    assert newest_step(run) > before
