"""Storage that fails, hangs or is full neither ends training nor holds it up, and what was lost is said."""

from __future__ import annotations

import errno
import itertools
import logging
import threading
import time
from typing import Any

import pytest

from piti import storage
from piti.training import publisher as module
from piti.training import status
from piti.training.loop import train
from piti.training.metrics import read_metrics
from piti.training.publisher import Publisher
from piti.training.workers import Workers


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)


def is_of_the_loop(uri: str) -> bool:
    """Whether a write is one of progress or metrics, not of a checkpoint."""
    return "step-" not in uri and ".writing-" not in uri


def test_the_newest_write_of_a_name_wins() -> None:
    gate, written = threading.Event(), list[str]()
    publisher = Publisher()
    publisher.put("first", gate.wait)
    for value in ("old", "older", "new"):
        publisher.put("progress", lambda value=value: written.append(value))  # type: ignore[misc]
    gate.set()
    assert publisher.flush(10)
    assert written == ["new"]
    assert publisher.close() == []


def test_a_failed_write_is_tried_again_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    attempts = itertools.count()

    def write() -> None:
        if next(attempts) < 3:
            raise OSError(errno.EIO, "the network is away")

    publisher = Publisher()
    with caplog.at_level(logging.WARNING, "piti"):
        publisher.put("metrics", write)
        while not publisher.flush(10):
            pass
    assert publisher.num_failed == 3
    assert [record.message for record in caplog.records] == [
        "could not write metrics (OSError: [Errno 5] the network is away); training goes on",
        "storage answers again, after 3 failed writes",
    ]
    assert publisher.close() == []


def test_what_is_lost_in_the_end_is_said(caplog: pytest.LogCaptureFixture) -> None:
    def write() -> None:
        raise OSError(errno.ENOSPC, "full")

    publisher = Publisher()
    publisher.put("metrics.jsonl", write)
    with caplog.at_level(logging.WARNING, "piti"):
        assert publisher.close() == ["metrics.jsonl"]
    assert "storage did not take metrics.jsonl: lost" in caplog.text


def test_storage_that_fails_every_third_write_loses_nothing(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "PROGRESS_INTERVAL_SECONDS", 0.0)
    calls, write_bytes = itertools.count(1), storage.write_bytes

    def flaky(uri: str, data: bytes, private: bool = False) -> None:
        if is_of_the_loop(uri) and next(calls) % 3 == 0:
            raise ConnectionError("reset by peer")
        write_bytes(uri, data, private)

    context = pipeline.context("pretrain")
    monkeypatch.setattr(storage, "write_bytes", flaky)
    result = train(context, Workers())
    assert result["steps"] == 6
    assert result["storage"]["failed_writes"] >= 1
    assert result["storage"]["lost"] == []
    steps = [record["step"] for record in read_metrics(context.spec.output) if record["split"] == "train"]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert storage.read_json(storage.join(context.spec.folder, "progress.json"))["done"] == 6


def test_a_full_disk_under_metrics_ends_no_training(
    pipeline: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_bytes = storage.write_bytes

    def full(uri: str, data: bytes, private: bool = False) -> None:
        if is_of_the_loop(uri):
            raise OSError(errno.ENOSPC, "No space left on device")
        write_bytes(uri, data, private)

    context = pipeline.context("pretrain")
    monkeypatch.setattr(storage, "write_bytes", full)
    with caplog.at_level(logging.WARNING, "piti"):
        result = train(context, Workers())
    assert result["steps"] == 6
    assert {"metrics.jsonl", "progress"} <= set(result["storage"]["lost"])
    assert "No space left on device" in caplog.text


def test_storage_that_hangs_does_not_hold_up_the_loop(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that hangs for as long as the run: every step is taken meanwhile."""
    monkeypatch.setattr(status, "FLUSH_SECONDS", 0.05)
    gate, write_bytes = threading.Event(), storage.write_bytes
    hanging: list[str] = []

    def hang(uri: str, data: bytes, private: bool = False) -> None:
        if is_of_the_loop(uri):
            hanging.append(uri)
            assert gate.wait(60)
        write_bytes(uri, data, private)

    taken: list[float] = []
    step = status.Status.step

    def timed(self: Any, *arguments: Any) -> None:
        step(self, *arguments)
        taken.append(time.monotonic())
        if len(taken) == 6:
            assert hanging, "nothing hung: nothing is proved"
            gate.set()

    context = pipeline.context("pretrain")
    monkeypatch.setattr(storage, "write_bytes", hang)
    monkeypatch.setattr(status.Status, "step", timed)
    result = train(context, Workers())
    assert result["storage"] == {"failed_writes": 0, "failed_checkpoints": 0, "lost": []}
    assert len([record for record in read_metrics(context.spec.output) if record["split"] == "train"]) == 6
