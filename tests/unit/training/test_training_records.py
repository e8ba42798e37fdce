"""metrics.jsonl, TensorBoard and checkpoint folders."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread
from torch.utils.tensorboard import SummaryWriter

from piti import storage
from piti.checkpoints import LEFTOVER_SECONDS, checkpoint_uri, claim_checkpoint, clear_leftovers, prune_checkpoints
from piti.errors import DataError
from piti.training import metrics, publisher
from piti.training.metrics import MetricsLog, read_metrics
from piti.training.publisher import Publisher
from piti.training.trackers import TensorBoard
from tests.e2e.runs import wait_for


def checkpoint(run: Path, step: int) -> Path:
    folder = run / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / storage.MARKER).write_text("{}")
    return folder


class Recorded:
    """A log as a run keeps it: written by a publisher, which `with` waits for."""

    def __init__(self, run: str, first_step: int = 0) -> None:
        self._publisher = Publisher()
        self._tensorboard = TensorBoard(storage.join(run, "tensorboard"), first_step)
        self._log = MetricsLog(run, first_step, self._publisher, [self._tensorboard])

    def __enter__(self) -> MetricsLog:
        return self._log

    def __exit__(self, *_: object) -> None:
        self._log.publish()
        self._tensorboard.end()
        assert self._publisher.close() + self._tensorboard.close() == []


def test_records_of_steps_to_be_redone_are_dropped(tmp_path: Path) -> None:
    run = str(tmp_path)
    with Recorded(run) as log:
        for step in (1, 2, 3):
            log.add(step, "train", {"loss": 1 / step})
    time.sleep(1.1)  # TensorBoard reads its files in the order of the second that they were begun in
    with Recorded(run, 2) as resumed:
        resumed.add(3, "train", {"loss": 7.0})
    assert [(record["step"], record["loss"]) for record in read_metrics(run)] == [(1, 1.0), (2, 0.5), (3, 7.0)]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 1.0), (2, 0.5), (3, 7.0)]


def test_a_fresh_run_does_not_keep_what_another_left(tmp_path: Path) -> None:
    with Recorded(str(tmp_path)) as log:
        log.add(0, "validation", {"loss": 1.0})
        log.add(1, "train", {"loss": 1.0})
    with Recorded(str(tmp_path)):
        pass
    assert read_metrics(str(tmp_path)) == []


def test_a_part_that_storage_did_not_take_costs_no_other(tmp_path: Path) -> None:
    """The first was not written, the second was, then the run was killed."""
    later = '{"step": 7, "split": "train", "loss": 1.0}\n'
    (tmp_path / "metrics-000001.jsonl").write_text(later)
    with Recorded(str(tmp_path), 7) as resumed:
        resumed.add(8, "train", {"loss": 0.5})
    assert (tmp_path / "metrics-000001.jsonl").read_text() == later
    assert [record["step"] for record in read_metrics(str(tmp_path))] == [7, 8]


def test_a_damaged_part_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train", "loss": 1.0}\n{"step": 2, "split": "tr')
    with pytest.raises(DataError, match=r"line 2 of .*metrics\.jsonl is no record .* - delete that line or the file"):
        read_metrics(str(tmp_path))


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    """JSON has no NaN; other programs must be able to read the file."""
    with Recorded(str(tmp_path)) as log:
        log.add(1, "train", {"loss": math.nan, "mse": math.inf, "vb": 1.0})
    record = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert (record["loss"], record["mse"], record["vb"]) == (None, None, 1.0)


def test_metrics_in_an_object_store() -> None:
    """The same files appear there, events included."""
    run = "memory://metrics-test/run"
    with Recorded(run) as log:
        log.add(1, "validation", {"loss": 0.5})
    assert [record["loss"] for record in read_metrics(run)] == [0.5]
    (events,) = storage.list_names(storage.join(run, "tensorboard"))
    assert events.startswith("events.out.tfevents")


def steps_of_events(folder: Path) -> list[int]:
    return [event.step for event in EventAccumulator(str(folder)).Reload().Scalars("train/loss")]


def wait_for_failures(tracker: TensorBoard, number: int) -> None:
    deadline = time.monotonic() + 60
    while tracker.num_failed < number:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def threads_of_event_files() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if isinstance(thread, _AsyncWriterThread)]


def test_an_outage_repeats_the_upload_of_events_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty uploads fail, more events come meanwhile: one file, one thread, each event once."""
    write_bytes, before = storage.write_bytes, len(threads_of_event_files())

    def away(uri: str, data: bytes) -> None:
        raise ConnectionError("the object store is away")

    monkeypatch.setattr(publisher, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(storage, "write_bytes", away)
    folder = "memory://outage-test/tensorboard"
    tracker = TensorBoard(folder, 0)
    for first in (1, 101):
        tracker.add([("train/loss", 1.0, step) for step in range(first, first + 100)])
        tracker.publish()
        wait_for_failures(tracker, tracker.num_failed + 10)
    assert len(threads_of_event_files()) - before <= 1
    monkeypatch.setattr(storage, "write_bytes", write_bytes)
    tracker.end()
    assert tracker.close() == []
    assert len(threads_of_event_files()) == before
    (name,) = storage.list_names(folder)
    (tmp_path / name).write_bytes(storage.read_bytes(storage.join(folder, name)))
    assert steps_of_events(tmp_path) == list(range(1, 201))


def test_an_event_file_that_cannot_be_written_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten files one after the other cannot be written: one thread at most, and the last file has the events."""
    before, add_scalar = len(threads_of_event_files()), SummaryWriter.add_scalar

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(publisher, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    tracker = TensorBoard(str(tmp_path), 0)
    tracker.add([("train/loss", 1.0, 1), ("train/loss", 1.0, 2)])
    tracker.publish()
    wait_for_failures(tracker, 10)
    assert len(threads_of_event_files()) - before <= 1
    monkeypatch.setattr(SummaryWriter, "add_scalar", add_scalar)
    tracker.end()
    assert tracker.close() == []
    assert len(threads_of_event_files()) == before
    assert steps_of_events(tmp_path) == [1, 2]


def test_a_part_that_is_full_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A publication writes the records since the last full part, however long the run."""
    monkeypatch.setattr(metrics, "RECORDS_PER_PART", 10)
    monkeypatch.setattr(metrics, "PUBLISH_INTERVAL_SECONDS", 0)
    sizes: list[int] = []
    write_bytes = storage.write_bytes

    def counting(uri: str, data: bytes) -> None:
        sizes.append(data.count(b"\n"))
        write_bytes(uri, data)

    monkeypatch.setattr(storage, "write_bytes", counting)
    writes = Publisher()
    log = MetricsLog(str(tmp_path), 0, writes)
    for step in range(1, 36):
        log.add(step, "train", {"loss": float(step)})
        assert writes.flush(10)
    log.publish()
    assert writes.close() == []
    assert max(sizes) == 10
    assert len(list(tmp_path.glob("metrics*.jsonl"))) == 4
    assert [record["step"] for record in read_metrics(str(tmp_path))] == list(range(1, 36))


def test_pruning_keeps_the_newest(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        checkpoint(tmp_path, step)
    (tmp_path / "step-00000008" / storage.MARKER).unlink()  # never finished: does not count as one
    prune_checkpoints(str(tmp_path), 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000006", "step-00000008"]
    prune_checkpoints(str(tmp_path), 1, spared=[4])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000006", "step-00000008"]


def test_leftovers_of_killed_processes_are_cleared(tmp_path: Path) -> None:
    whole = checkpoint(tmp_path, 2)
    (checkpoint(tmp_path, 4) / storage.MARKER).unlink()
    (tmp_path / ".writing-abc").mkdir()
    clear_leftovers(str(tmp_path))
    assert list(tmp_path.iterdir()) == [whole]
    clear_leftovers(str(tmp_path / "nothing-there"))


def test_what_a_killed_upload_left_on_this_machine_is_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before its process has ended, though it uploads for hours."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run = "memory://uploads/run"
    upload = (
        "import time\nfrom piti.checkpoints import aside_of\n"
        f"with aside_of({run!r}) as aside:\n    (aside / 'model.safetensors').touch()\n    time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", upload], env={**os.environ, "TMPDIR": str(tmp_path)})
    try:
        wait_for("the file", lambda: list(tmp_path.glob(".*/model.safetensors")), 60)
        clear_leftovers(run)
        assert list(tmp_path.glob(".*/model.safetensors")), "it is still being uploaded"
    finally:
        process.kill()
        process.wait()
    assert list(tmp_path.iterdir())
    clear_leftovers(run)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["local", "memory", "s3"])
def test_what_nobody_has_touched_for_hours_is_cleared(
    tmp_path: Path, place: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half-uploaded and half-deleted checkpoints; not before, since another machine may still be writing them."""
    run = {"local": lambda: str(tmp_path), "memory": lambda: f"memory://leftovers/{tmp_path.name}",
           "s3": lambda: storage.join(request.getfixturevalue("bucket"), "run")}[place]()  # fmt: skip
    files = {1: "model.safetensors", 2: storage.MARKER, 3: "DAMAGED.json", 4: "ema.safetensors", 5: storage.MARKER}
    for step, name in files.items():
        storage.write_json(storage.join(checkpoint_uri(run, step), name), {})
    everything = storage.list_names(run)
    assert len(everything) == 5
    prune_checkpoints(run, 2)
    if place != "local":
        clear_leftovers(run)
    assert storage.list_names(run) == everything
    hours_later = time.time() + LEFTOVER_SECONDS + 60
    monkeypatch.setattr(time, "time", lambda: hours_later)
    prune_checkpoints(run, 2)
    assert storage.list_names(run) == [f"step-0000000{step}" for step in (2, 3, 5)]


def test_what_is_still_being_written_stays(tmp_path: Path) -> None:
    """Its first file is old, its last is new."""
    for name in ("ema.safetensors", "model.safetensors"):
        storage.write_json(str(tmp_path / "step-00000004" / name), {})
    old = time.time() - LEFTOVER_SECONDS - 60
    os.utime(tmp_path / "step-00000004" / "ema.safetensors", (old, old))
    prune_checkpoints(str(tmp_path), 1)
    assert storage.list_names(str(tmp_path)) == ["step-00000004"]
    os.utime(tmp_path / "step-00000004" / "model.safetensors", (old, old))
    prune_checkpoints(str(tmp_path), 1)
    assert storage.list_names(str(tmp_path)) == []


def test_a_full_disk_under_a_claim_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its evaluation goes on."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    uri = str(checkpoint(tmp_path, 2))
    monkeypatch.setattr(os, "fsync", full)
    with caplog.at_level(logging.WARNING, "piti"):
        claim_checkpoint(uri, "evaluation")
    assert "could not claim" in caplog.text
    assert "no space left" in caplog.text
