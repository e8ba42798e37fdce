"""Training on real Ray Train workers: two of them agree with one, a killed one is replaced, a user's error is not retried."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch

from piti import storage
from piti.config.presets import load_config
from piti.data.publishing import write_manifest
from piti.data.sharding import plan_shards, write_shard
from piti.data.sources import open_source
from piti.diffusion import LossSecondMomentSampler
from piti.errors import CheckpointError, PitiError
from piti.job import JobContext, JobSpec
from piti.jobs import train as job
from piti.models.checkpoints import load_model, load_trainer_state
from piti.plan import Plan
from piti.training.metrics import read_metrics
from tests.e2e.tiny import tiny_overrides

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::FutureWarning:ray", "ignore::ResourceWarning", "ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray cluster of this process, or whichever is there already."""
    found = ray.is_initialized()
    if not found:
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False
        )
    yield
    if not found:
        ray.shutdown()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shards")
    config = load_config("demo-sketch", tiny_overrides(folder))
    uri = str(folder / "shards")
    plans = plan_shards(open_source(config.data), config.data, config.seed)
    for plan in plans:
        write_shard(plan, config.data, uri)
    about = {name: getattr(config.data, name) for name in ("modality", "image_size", "geometry", "num_classes")}
    write_manifest(uri, list(plans.digests), about)
    return uri


def context_of(root: Path, shards: str, stage: str = "pretrain", **more: Any) -> JobContext:
    config = load_config("demo-sketch", tiny_overrides(root, **more))
    step = getattr(Plan(config), stage)
    spec = JobSpec(
        kind="train", name=stage, fingerprint=step.fingerprint, output=step.output,
        inputs={**step.inputs, "shards": shards}, folder=str(root / "jobs" / stage), config=config,
    )  # fmt: skip
    return JobContext(spec)


def train_workers() -> list[psutil.Process]:
    """Processes of Ray Train's workers below this one."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_two_workers_do_what_one_does(cluster: None, shards: str, tmp_path: Path) -> None:
    """Same pictures, noise, timesteps and dropped conditions, so that only the order of sums differs.

    Of two timesteps, so that drawing soon depends on the losses that both workers have seen.
    """
    results, weights, timesteps = {}, {}, {}
    options = {"diffusion__base__steps": 2, "training__pretrain__phases": [{"steps": 10, "learning_rate": 3e-4}]}
    for num_workers in (1, 2):
        context = context_of(tmp_path / str(num_workers), shards, cluster__num_workers=num_workers, **options)
        results[num_workers] = job.run(context)
        timesteps[num_workers] = load_trainer_state(results[num_workers]["checkpoint"])["timesteps"]
        weights[num_workers] = load_model(results[num_workers]["checkpoint"], context.config.models.base).state_dict()
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


def test_a_killed_worker_is_replaced_and_the_run_ends_the_same(cluster: None, shards: str, tmp_path: Path) -> None:
    """SIGKILL for one of two workers after the first checkpoint: the run goes on from it and ends as undisturbed."""
    longer: dict[str, Any] = {
        "training__pretrain__phases": [{"steps": 16, "learning_rate": 1e-3}],
        "training__pretrain__checkpoint_every_steps": 4,
        "training__pretrain__keep_checkpoints": 8,
    }
    undisturbed = job.run(context_of(tmp_path / "undisturbed", shards, **longer))
    context = context_of(tmp_path / "killed", shards, **longer)
    killed: list[int] = []

    def kill_one_later() -> None:
        marker = storage.join(context.spec.output, "step-00000004", storage.MARKER)
        while not storage.exists(marker):
            time.sleep(0.01)
        victim = train_workers()[-1].pid
        os.kill(victim, signal.SIGKILL)
        killed.append(victim)

    thread = threading.Thread(target=kill_one_later, daemon=True)
    thread.start()
    result = job.run(context)
    thread.join(timeout=1)
    assert killed, "nobody was killed: the test proves nothing"
    assert result["steps"] == 16
    assert result["initial_validation"] == undisturbed["initial_validation"]
    for key, value in undisturbed["final_validation"].items():
        assert result["final_validation"][key] == pytest.approx(value, rel=1e-6)
    steps = [record["step"] for record in read_metrics(context.spec.output) if record["split"] == "train"]
    assert steps == list(range(1, 17)), "a step is missing from metrics.jsonl, or there twice"


def test_an_error_that_repeats_itself_is_tried_once_more_and_named(cluster: None, shards: str, tmp_path: Path) -> None:
    """A link to nowhere where the last checkpoint should be: two attempts, then the cause in one line."""
    context = context_of(tmp_path, shards, cluster__max_failures=3, training__pretrain__checkpoint_every_steps=4)
    blocked = storage.local_path(storage.join(context.spec.output, "step-00000006"))
    blocked.parent.mkdir(parents=True)
    blocked.symlink_to(tmp_path / "nowhere")
    lines: list[str] = []
    context.info = lines.append  # type: ignore[method-assign]
    with pytest.raises(PitiError, match=r"pretrain failed twice in the same place: \w+: .*worker 0 on .*, step 6"):
        job.run(context)
    assert len(lines) == 1
    assert "restart 1 of 3" in lines[0]
    assert "WorkerGroupError" not in lines[0]


def test_a_users_error_reaches_the_driver_at_once(cluster: None, shards: str, tmp_path: Path) -> None:
    """Stage 2 without stage 1: every worker raises CheckpointError; it is neither wrapped nor tried again."""
    context = context_of(tmp_path, shards, "stage2", cluster__max_failures=3)
    lines: list[str] = []
    context.info = lines.append  # type: ignore[method-assign]
    with pytest.raises(CheckpointError, match="is not finished"):
        job.run(context)
    assert lines == [], "it was tried again"
