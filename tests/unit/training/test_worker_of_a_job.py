"""What a Ray Train worker does around the loop, in this process."""

from __future__ import annotations

import errno
import logging
from typing import Any

import pytest
import torch

from piti import storage
from piti.job import SPEC_FILE
from piti.jobs.train import WorkerContext, _train
from piti.runs import WORKERS_FILE
from piti.training import publisher

BESIDE = (WORKERS_FILE, "curve.png")  # what it writes besides the run itself


@pytest.fixture
def worker(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(publisher, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr("ray.train.torch.get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr("ray.train.get_preemption_info", lambda: None)
    spec = pipeline.context("pretrain").spec
    storage.write_json(storage.join(spec.folder, SPEC_FILE), spec.model_dump(mode="json"))
    context = WorkerContext(spec, "first", 0)
    yield context
    context.watchdog.close()


def test_the_first_worker_tells_of_its_attempt_and_draws_the_curve(worker: WorkerContext) -> None:
    _train(worker, "first")
    assert storage.read_json(storage.join(worker.spec.output, WORKERS_FILE))["attempt"] == "first"
    assert storage.read_bytes(storage.join(worker.spec.output, "curve.png")).startswith(b"\x89PNG")


def test_a_full_disk_under_what_lies_beside_a_run_ends_no_training(
    worker: WorkerContext, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_bytes = storage.write_bytes

    def full(uri: str, data: bytes, private: bool = False) -> None:
        with storage.disk_space(storage.name(uri), worker.spec.output):
            if storage.name(uri) in BESIDE:
                raise OSError(errno.ENOSPC, "No space left on device")
        write_bytes(uri, data, private)

    monkeypatch.setattr(storage, "write_bytes", full)
    with caplog.at_level(logging.WARNING, "piti"):
        assert _train(worker, "first")["steps"] == 6
    told = caplog.records[-1].getMessage()
    assert told.startswith("storage did not take ")
    assert all(name in told for name in BESIDE)
