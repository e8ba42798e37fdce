"""What logs, progress and checkpoints cost a training loop whose storage answers late. One process, a few minutes.

    .venv/bin/python benchmarks/loop_overhead.py [--steps 1010] [--rounds 3] [--latency 0.06]

The loop runs `--rounds` times bare and as many times with all that a job keeps of a run, in turn: logs every 100 steps, a checkpoint
every 1,000, as the presets have it, each write `--latency` seconds late. Validation and pictures are left out of both, since they
are networks' work. A step of so small a network takes a tenth of a published one's, so that the share here is an upper bound.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import torch

from piti import storage
from piti.config import Config
from piti.config.presets import load_config
from piti.data.sharding import shard_dataset
from piti.job import JobContext, JobSpec
from piti.plan import Plan
from piti.training import loop
from piti.training.batches import Batches
from piti.training.checkpointer import Checkpointer
from piti.training.observers import Observers
from piti.training.stages import TrainingStage
from piti.training.state import TrainingState
from piti.training.workers import Workers

WARM_UP_STEPS = 5


class Keeping(Observers):
    """Keeps what a job keeps, of logs, progress and checkpoints."""

    stalls: ClassVar[list[float]] = []  # seconds that the loop waited for each checkpoint: checked, copied, queued

    def begin(self) -> None: ...
    def validate(self) -> None: ...
    def sample(self) -> None: ...

    def checkpoint(self) -> None:
        began = time.perf_counter()
        super().checkpoint()
        if self._is_due(self._settings.checkpoint_every_steps):
            self.stalls.append(time.perf_counter() - began)


class Bare(Keeping):
    """Keeps nothing."""

    def log(self, *_: Any) -> None: ...
    def checkpoint(self) -> None: ...
    def stop(self) -> None: ...


def timed_run(config: Config, shards: str, steps: int, kind: type[Keeping]) -> float:
    """Seconds of `steps` steps after the first ones."""
    step = Plan(config).pretrain
    assert step is not None
    spec = JobSpec.for_step(step, config, storage.join(config.root, "job"))
    context = JobContext(spec.model_copy(update={"inputs": {**spec.inputs, "shards": shards}}))
    state = TrainingState.begin(TrainingStage("pretrain", config), context.spec.inputs, Workers(), spec.output)
    batches = Batches(context, state)
    observers = kind(context, state, batches)
    pictures = iter(batches)
    for number in (WARM_UP_STEPS, steps):
        began = time.perf_counter()
        with suppress(StopIteration):  # the batches end before the phase does
            loop.run(state, islice(pictures, number), observers)
        seconds = time.perf_counter() - began
    observers.close()
    return seconds


def late(function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    """`function` as on a server far away."""

    def called(*arguments: Any, **options: Any) -> Any:
        time.sleep(seconds)
        return function(*arguments, **options)

    return called


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1010)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency", type=float, default=0.06, help="seconds that each write is late")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the other core writes
    shares, stalls, writes = [], Keeping.stalls, list[float]()

    def timed(function: Callable[..., Any], into: list[float]) -> Callable[..., Any]:
        def called(*given: Any) -> None:
            began = time.perf_counter()
            function(*given)
            into.append(time.perf_counter() - began)

        return called

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(storage, "write_bytes", late(storage.write_bytes, arguments.latency)),
        mock.patch.object(storage, "publish_file", late(storage.publish_file, arguments.latency)),
        mock.patch.object(Checkpointer, "_write", timed(Checkpointer._write, writes)),
    ):
        whole = {
            "training.pretrain": {
                "phases": [{"steps": 100_000, "learning_rate": 1e-4, "condition_dropout": 0.2}], "batch_size": 2,
                "precision": "fp32", "checkpoint_every_steps": 1000, "log_every_steps": 100,
            },
            "pretrained.base": None, "data.source.train_crops": 64,
        }  # fmt: skip
        shards = ""
        for number in range(arguments.rounds):
            seconds = {}
            for kind in (Bare, Keeping):
                config = load_config("demo", {**whole, "root": str(Path(folder) / f"{number}-{kind.__name__}")})
                shards = shards or shard_dataset(config.data, str(Path(folder) / "shards"), config.seed).uri
                seconds[kind] = timed_run(config, shards, arguments.steps, kind)
            shares.append(seconds[Keeping] / seconds[Bare] - 1)
            print(f"bare {seconds[Bare]:.1f} s, keeping {seconds[Keeping]:.1f} s: {shares[-1]:+.1%}", flush=True)
    print(f"logs, progress and checkpoints add {statistics.median(shares):.1%} (median) to {arguments.steps} steps")
    if stalls:
        stall, written = statistics.median(stalls), statistics.median(writes)
        print(
            f"a checkpoint holds the loop for {1000 * stall:.1f} ms, {stall / written:.1%} of its write's {written:.2f} s"
        )


if __name__ == "__main__":
    main()
