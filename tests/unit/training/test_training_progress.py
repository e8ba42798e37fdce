"""What a run shows while it learns, and the options of its learning rate, precision and checkpoints."""

from __future__ import annotations

import io
import json
import math
import re
import threading
import time
from functools import partialmethod
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch._dynamo.utils import counters

from piti import storage
from piti.checkpoints import Checkpoint, checkpoint_uri, checkpoints_of, claim_checkpoint, release_checkpoint
from piti.config import PhaseConfig
from piti.data.shards import ShardReader
from piti.models import PITIModel
from piti.training import samples, status
from piti.training.batches import Batches
from piti.training.loop import train
from piti.training.metrics import read_metrics
from piti.training.stages import TrainingStage
from piti.training.state import TrainingState
from piti.training.status import Status
from piti.training.workers import Workers, use_precision
from tests.unit.training.test_training_resume import differences, everything


def test_pictures_are_drawn_while_the_upsampler_learns(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third step: a grid below the run, in TensorBoard, and named in the job's progress. It changes no weight."""
    monkeypatch.setattr(samples, "NUM_STEPS", 2)
    context = pipeline.context("upsampler", training__upsampler__sample_every_steps=3)
    result = train(context, Workers())
    folder = storage.join(context.spec.output, "samples")
    assert storage.list_names(folder) == ["step-00000003.png", "step-00000006.png"]
    first, last = (
        np.asarray(Image.open(io.BytesIO(storage.read_bytes(storage.join(folder, name)))))
        for name in storage.list_names(folder)
    )
    changed = (first != last).any(axis=(0, 2)).nonzero()[0]  # columns of pixels: only what is drawn differs
    assert first.shape[1] / 3 - 10 < changed.min() < changed.max() < 2 * first.shape[1] / 3 + 10
    events = EventAccumulator(storage.join(context.spec.output, "tensorboard"), {"images": 0}).Reload()
    assert [event.step for event in events.Images("samples")] == [3, 6]
    progress = storage.read_json(storage.join(context.spec.folder, "progress.json"))
    assert progress["picture"].endswith("samples/step-00000006.png")

    plain = pipeline.context("upsampler", run="plain")
    digests = [Checkpoint.at(uri).sha256["model.safetensors"] for uri in (
        result["checkpoint"], train(plain, Workers())["checkpoint"])]  # fmt: skip
    assert digests[0] == digests[1]


def test_progress_never_goes_back(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture of step 4 is stored after the last step: what is told then is still the last step."""
    monkeypatch.setattr(samples, "NUM_STEPS", 2)
    gate, write_bytes, told = threading.Event(), storage.write_bytes, list[float]()

    def late(uri: str, data: bytes, private: bool = False) -> None:
        if uri.endswith("step-00000004.png"):
            assert gate.wait(60)
        if uri.endswith("progress.json"):
            told.append(json.loads(data)["done"])
        write_bytes(uri, data, private)

    def step_and_open(self: Status, *arguments: Any) -> None:
        step(self, *arguments)
        if self._state.progress.step == 6:
            gate.set()

    step = Status.step
    monkeypatch.setattr(status, "PROGRESS_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(storage, "write_bytes", late)
    monkeypatch.setattr(Status, "step", step_and_open)
    train(pipeline.context("pretrain", training__pretrain__sample_every_steps=4), Workers())
    assert told == sorted(told)
    assert told[-1] == 6


def test_the_record_tells_of_waiting_and_the_log_of_its_cause(
    pipeline: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Half of all time is waited here, whatever the machine."""
    monkeypatch.setattr(
        Batches, "waited_seconds", property(lambda self: time.monotonic() / 2, lambda self, value: None), raising=False
    )
    monkeypatch.setattr(Batches, "why_waiting", lambda self: "the cause")
    context = pipeline.context("pretrain", training__pretrain__phases=[{"steps": 4, "learning_rate": 1e-3}])
    with caplog.at_level("INFO", logger="piti"):
        train(context, Workers())
    records = [entry for entry in read_metrics(context.spec.output) if entry["split"] == "train"]
    assert 0.4 < records[1]["waiting_for_data"] < 1
    assert all(record["memory_gigabytes"] > 0.05 and record["gradient_norm"] > 0 for record in records)
    assert any(re.search(r"\d+ % of the time .* waiting for pictures; the cause", line) for line in caplog.messages)


def test_waiting_is_measured_and_reading_named(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage that takes 20 ms a picture, read when it is asked for: 80 ms a batch of four."""
    read = ShardReader.read

    def slow(self: ShardReader, number: int) -> Any:
        time.sleep(0.02)
        return read(self, number)

    monkeypatch.setattr(ShardReader, "read", slow)
    context = pipeline.context("pretrain", cluster__loader_workers=1)
    stage = TrainingStage("pretrain", context.config)
    batches = Batches(context, TrainingState.fresh(stage, context.spec.inputs, Workers()))
    stream = iter(batches)
    next(stream)
    assert batches.waited_seconds >= 4 * 0.02
    assert "is reading from storage: raise cluster.loader_workers (1)" in batches.why_waiting()


@pytest.mark.parametrize(
    ("threads", "reading", "decoding", "words"),
    [(0, 1.0, 1.0, "nothing is read ahead"), (2, 1.0, 3.0, "75 % of the loader's time is decoding")],
)
def test_causes_of_waiting(threads: int, reading: float, decoding: float, words: str) -> None:
    batches = Batches.__new__(Batches)
    batches._num_threads = threads
    batches._loader = type("Loader", (), {"spent": type("Spent", (), {"reading_seconds": reading, "decoding_seconds": decoding})})  # type: ignore[assignment]  # fmt: skip
    assert words in batches.why_waiting()


def test_learning_rates_of_a_phase() -> None:
    """Warm-up in equal steps; then half a cosine that would reach zero with the next step after the last."""
    phase = PhaseConfig(steps=14, learning_rate=1.0, warmup_steps=4, decay="cosine")
    assert [phase.learning_rate_at(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert [phase.learning_rate_at(step) for step in range(4, 14)] == pytest.approx(
        [math.cos(math.pi * i / 20) ** 2 for i in range(10)]
    )
    assert {PhaseConfig(steps=3, learning_rate=0.5).learning_rate_at(step) for step in range(3)} == {0.5}
    with pytest.raises(ValidationError, match="fewer than the phase's steps"):
        PhaseConfig(steps=3, learning_rate=0.5, warmup_steps=3)


def test_the_logged_learning_rate_is_the_phases(pipeline: Any) -> None:
    """Each phase warms up anew."""
    phases = [{"steps": 3, "learning_rate": 1e-3, "warmup_steps": 1}] * 2
    context = pipeline.context("pretrain", training__pretrain__phases=phases)
    train(context, Workers())
    rates = [record["learning_rate"] for record in read_metrics(context.spec.output) if record["split"] == "train"]
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3] * 2)


def test_precision_sets_how_a_gpu_multiplies() -> None:
    """And torch.export, which reads these settings, still works afterwards."""
    products, networks = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, networks.allow_tf32
    try:
        for precision, expected in (("tf32", True), ("fp32", False), ("bf16", False)):
            use_precision(precision)  # type: ignore[arg-type]
            assert (products.allow_tf32, networks.allow_tf32) == (expected, expected)
            torch.export.export(torch.nn.Conv2d(3, 3, 3), (torch.zeros(1, 3, 8, 8),))
    finally:
        products.allow_tf32, networks.allow_tf32 = before


def test_a_compiled_network_learns_the_same(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through torch.compile's tracing, with the backend that runs what was traced as it is: to the bit."""
    monkeypatch.setattr(PITIModel, "compile", partialmethod(PITIModel.compile, backend="eager"))
    torch.compiler.reset()
    contexts = [pipeline.context("pretrain", run=f"{c}", training__pretrain__compile=c) for c in (False, True)]
    found = []
    for context, num_traced in zip(contexts, (False, True), strict=True):
        counters.clear()
        found.append(everything(train(context, Workers())["checkpoint"], context))
        assert bool(counters["stats"]["unique_graphs"]) is num_traced
    assert differences(*found) == []


def test_claimed_and_round_checkpoints_outlive_newer_ones(pipeline: Any) -> None:
    """Of six, one kept: the newest, every third, and one that an evaluation reads; not one whose claim is over."""
    options = {"checkpoint_every_steps": 1, "keep_checkpoints": 1, "keep_every_steps": 3}
    context = pipeline.context("pretrain", **{f"training__pretrain__{name}": value for name, value in options.items()})
    run = context.spec.output
    claim_checkpoint(checkpoint_uri(run, 2), "evaluation")
    claim_checkpoint(checkpoint_uri(run, 4), "evaluation", seconds=-1)
    claim_checkpoint(checkpoint_uri(run, 5), "evaluation")
    release_checkpoint(checkpoint_uri(run, 5), "evaluation")
    train(context, Workers())
    assert [Checkpoint.at(uri).step for uri in checkpoints_of(run)] == [2, 3, 6]
    claim_checkpoint(str(context.spec.output) + "/imported", "evaluation")  # not of a run that deletes
    assert storage.list_names(storage.join(run, "claims")) == ["step-00000002", "step-00000004", "step-00000005"]
