"""Training on real Ray Train workers: two of them agree with one, a killed one is replaced, a user's error is not retried."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
import torch

from piti import storage
from piti.config.presets import load_config
from piti.data.sharding import shard_dataset
from piti.diffusion import LossSecondMomentSampler
from piti.job import JobContext, JobResult, JobSpec
from piti.models import build_model
from piti.models.checkpoints import load_model, load_trainer_state, write_checkpoint
from piti.plan import Plan
from piti.training.loop import train
from piti.training.metrics import read_metrics
from piti.training.workers import Workers
from tests.e2e.runs import wait_for
from tests.e2e.tiny import tiny_overrides
from tests.running_stack import RunningStack
from tests.unit.training.test_training_resume import differences, everything

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shards")
    config = load_config("demo-sketch", tiny_overrides(folder))
    return shard_dataset(config.data, str(folder / "shards"), config.seed).uri


def spec_of(root: Path, shards: str, stage: str = "pretrain", **more: Any) -> JobSpec:
    """What a training job below `root` is told."""
    config = load_config("demo-sketch", tiny_overrides(root, **more))
    step = getattr(Plan(config), stage)
    return JobSpec(
        kind="train", name=stage, fingerprint=step.fingerprint, output=step.output,
        inputs={**step.inputs, "shards": shards}, folder=str(root / "jobs" / stage), config=config,
    )  # fmt: skip


class Driver:
    """The process of a training job, as Ray's Jobs API starts it; its workers run on the shared stack's cluster."""

    def __init__(self, stack: RunningStack, spec: JobSpec, program: Sequence[str] = ("-m", "piti.jobs")) -> None:
        self.spec = spec
        spec_uri = storage.join(spec.folder, "spec.json")
        storage.write_json(spec_uri, spec.model_dump(mode="json"))
        self._process = subprocess.Popen(
            [sys.executable, *program, "train", "--spec", spec_uri],
            env={**stack.environment, "RAY_ADDRESS": f"127.0.0.1:{stack.record.ports.ray}"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def signal(self, number: int) -> None:
        """Send its process a signal."""
        self._process.send_signal(number)

    def wait(self) -> tuple[int, str]:
        """Exit code, and all it printed."""
        try:
            output, _ = self._process.communicate(timeout=300)
        finally:
            self.kill()
        return self._process.returncode, output

    def kill(self) -> None:
        """Leave no process and no pipe of it."""
        with self._process:
            self._process.kill()

    def result(self) -> tuple[JobResult, str]:
        """What it left, which must have gone well, and all it printed."""
        code, output = self.wait()
        assert code == 0, output
        return cast(JobResult, storage.read_json(storage.join(self.spec.output, storage.MARKER))), output


# Of two timesteps, so that drawing soon depends on the losses that both workers have seen.
OPTIONS: dict[str, Any] = {
    "diffusion__base__steps": 2,
    "training__pretrain__phases": [{"steps": 10, "learning_rate": 3e-4}],
    "training__pretrain__checkpoint_every_steps": 4,
    "training__pretrain__keep_checkpoints": 8,
}


@pytest.fixture(scope="module")
def undisturbed(stack: RunningStack, shards: str, tmp_path_factory: pytest.TempPathFactory) -> JobResult:
    """Pretraining by two workers."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return Driver(stack, spec_of(folder, shards, cluster__num_workers=2, **OPTIONS)).result()[0]


def both(workers: list[psutil.Process]) -> list[psutil.Process] | None:
    return workers if len(workers) == 2 else None


def test_two_workers_do_what_one_does(undisturbed: JobResult, shards: str, tmp_path: Path) -> None:
    """Same pictures, noise, timesteps and dropped conditions, so that only the order of sums differs. The one worker
    is this process."""
    spec = spec_of(tmp_path, shards, cluster__num_workers=1, **OPTIONS)
    results, weights, timesteps = {1: train(JobContext(spec), Workers()), 2: undisturbed}, {}, {}
    for num_workers in (1, 2):
        timesteps[num_workers] = load_trainer_state(results[num_workers]["checkpoint"])["timesteps"]
        weights[num_workers] = load_model(results[num_workers]["checkpoint"], spec.config.models.base).state_dict()
    sampler = LossSecondMomentSampler(2)
    sampler.load_state_dict(timesteps[2])
    assert abs(sampler.weights().diff()) > 0.01, "drawn uniformly to the end: nothing is proved"
    torch.testing.assert_close(timesteps[2]["counts"], timesteps[1]["counts"], rtol=0, atol=0)
    torch.testing.assert_close(timesteps[2]["losses"], timesteps[1]["losses"], rtol=1e-3, atol=0)
    for name in ("initial_validation", "final_validation"):
        for key, value in results[1][name].items():
            assert results[2][name][key] == pytest.approx(value, rel=1e-3), f"{name} {key}"
    for key, value in weights[1].items():
        # Adam divides by the gradient's size, so that rounding can turn the sign of a step where it is near zero.
        difference = (weights[2][key] - value).abs().mean()
        assert difference < 1e-4, f"{key} differs by {difference} on average"


def test_after_a_killed_worker_the_run_ends_the_same(
    stack: RunningStack, undisturbed: JobResult, shards: str, tmp_path: Path
) -> None:
    """SIGKILL for one of two workers after the first checkpoint: weights, averages, optimizer and logged losses are
    those of the undisturbed run, bit for bit. Killed drivers: tests/e2e/test_interruptions.py.
    """
    driver = Driver(stack, spec_of(tmp_path, shards, cluster__num_workers=2, **OPTIONS))
    workers: list[psutil.Process] = wait_for("two workers", lambda: both(stack.training_workers()))
    marker = Path(driver.spec.output, "step-00000004", storage.MARKER)
    wait_for("the first checkpoint", marker.exists, poll_seconds=0.005)
    workers[-1].kill()
    result, output = driver.result()
    assert "resuming from" in output, "no worker was replaced"
    assert result["steps"] == 10
    assert result["resumed_from_step"] in (4, 8, 10)
    context = JobContext(driver.spec)
    assert differences(everything(result["checkpoint"], context), everything(undisturbed["checkpoint"], context)) == []
    found, expected = (losses_of(one["checkpoint"].rpartition("/")[0]) for one in (result, undisturbed))
    assert found == expected, "a step is missing from the metrics, there twice, or other than undisturbed"


def losses_of(run: str) -> list[tuple[Any, ...]]:
    """Step, split and losses of each record of a run's metrics."""
    return [tuple(record.get(name) for name in ("step", "split", "loss", "mse", "vb")) for record in read_metrics(run)]


def test_an_error_that_repeats_itself_is_tried_once_more_and_named(
    stack: RunningStack, shards: str, tmp_path: Path
) -> None:
    """A whole checkpoint that lacks the optimizer, which no worker expects: two attempts, then the cause in one line."""
    spec = spec_of(tmp_path, shards, cluster__max_failures=3)
    weights = build_model(spec.config.models.base).state_dict()
    write_checkpoint(
        Path(spec.output, "step-00000002"), model=weights, ema=weights,
        trainer={"stage": "pretrain", "origin": {}}, about={"stage": "pretrain", "step": 2},
    )  # fmt: skip
    code, output = Driver(stack, spec).wait()
    assert code == 2
    failure = storage.read_json(storage.join(spec.folder, "error.json"))
    expected = r"pretrain failed twice in the same place: KeyError: 'optimizer' \(state\.py:\d+; worker 0 on .*, before its first"
    assert re.match(expected, failure["reason"])
    assert output.count("restart 1 of 3") == 1
    assert "restart 2" not in output


def test_a_users_error_reaches_the_driver_at_once(stack: RunningStack, shards: str, tmp_path: Path) -> None:
    """Stage 2 without stage 1: every worker raises CheckpointError, which the driver repeats in one line and does not retry."""
    driver = Driver(stack, spec_of(tmp_path, shards, "stage2", cluster__max_failures=3))
    code, output = driver.wait()
    assert code == 2
    failure = storage.read_json(storage.join(driver.spec.folder, "error.json"))
    assert "is not finished" in failure["reason"]
    assert not failure["retryable"]
    assert not re.search(r"restart \d+ of", output), "it was tried again"  # Ray itself writes of actors that restart
    assert "Traceback" not in output
