"""Checkpoints are written beside the loop: whole, in order, of the step they say, and training outlives bad storage."""

from __future__ import annotations

import errno
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from piti import storage
from piti.checkpoints import Checkpoint, checkpoint_uri, checkpoints_of, most_checkpoints, verify_checkpoint
from piti.errors import DataError, StoppedError
from piti.job import SPEC_FILE, JobContext, StopRequest
from piti.models.checkpoints import load_model, load_trainer_state
from piti.training import checkpointer, publisher, state, stopping
from piti.training.checkpointer import Checkpointer
from piti.training.loop import train
from piti.training.status import Status
from piti.training.workers import Workers
from tests.unit.training.test_training_resume import train_until

EVERY_STEP = {"training__pretrain__checkpoint_every_steps": 1, "training__pretrain__keep_checkpoints": 20}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "RETRY_SECONDS", 0.01)


def steps_of(run: str) -> list[int]:
    return [Checkpoint.at(uri).step for uri in checkpoints_of(run)]


def test_a_write_that_hangs_holds_up_no_step_and_holds_what_it_held(
    pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 1's write goes on until step 5: steps 2 and 3 give way to step 4, and step 1's is that of step 1."""
    whole = pipeline.context("pretrain", run="whole", **EVERY_STEP)
    train(whole, Workers())
    assert steps_of(whole.spec.output) == [1, 2, 3, 4, 5, 6]

    gate, write_checkpoint, written = threading.Event(), state.write_checkpoint, list[int]()

    def hang(folder: Path, **contents: Any) -> None:
        assert gate.wait(60)
        written.append(contents["about"]["step"])
        write_checkpoint(folder, **contents)

    step = Status.step

    def open_at_step_5(self: Any, *arguments: Any) -> None:
        step(self, *arguments)
        if self._state.progress.step == 5:
            gate.set()

    monkeypatch.setattr(state, "write_checkpoint", hang)
    monkeypatch.setattr(Status, "step", open_at_step_5)
    context = pipeline.context("pretrain", run="hanging", **EVERY_STEP)
    train(context, Workers())
    assert written == sorted(written), "an older checkpoint was written after a newer one"
    assert written[0] == 1
    assert written[-1] == 6
    assert not {2, 3} & set(written)
    for number in written:
        one, other = (checkpoint_uri(run.spec.output, number) for run in (whole, context))
        verify_checkpoint(other)
        for weights in ("model", "ema"):
            models = [load_model(uri, context.config.models.base, weights).state_dict() for uri in (one, other)]
            assert all(torch.equal(value, models[1][key]) for key, value in models[0].items()), f"step {number}"
        moments = [load_trainer_state(uri)["optimizer"]["state"][0]["exp_avg"] for uri in (one, other)]
        assert torch.equal(*moments)


def test_checkpoints_that_cannot_be_written_end_no_training(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other attempt fails, among them the last checkpoint's first."""
    attempts, publish_folder = list[int](), storage.publish_folder

    def flaky(*arguments: Any) -> None:
        attempts.append(len(attempts))
        if len(attempts) % 2:
            raise ConnectionError("reset by peer")
        publish_folder(*arguments)

    monkeypatch.setattr(storage, "publish_folder", flaky)
    context = pipeline.context("pretrain")
    result = train(context, Workers())
    assert result["storage"]["failed_checkpoints"] >= 1
    assert steps_of(context.spec.output)[-1] == 6
    assert not list(Path(context.spec.output).glob(".writing-*"))


def test_a_last_checkpoint_that_cannot_be_written_is_an_error(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full for good: the steps are taken, then the error names the place."""

    def full(source: Path, uri: str) -> None:
        with storage.disk_space("a checkpoint", uri):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage, "publish_folder", full)
    context = pipeline.context("pretrain")
    with pytest.raises(DataError, match=r"no space left for a checkpoint in .*step-00000006"):
        train(context, Workers())
    assert steps_of(context.spec.output) == []


def test_a_last_checkpoint_waits_for_storage_that_is_away(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount that is gone for twenty writes, then back. What is still there and refuses: the test above."""
    context, publish_folder, num_failed = pipeline.context("pretrain"), storage.publish_folder, 0
    spec = Path(context.spec.folder, SPEC_FILE)
    away = spec.with_name("away")

    def gone(source: Path, uri: str) -> None:
        nonlocal num_failed
        if num_failed < 20:
            if num_failed == 0:
                spec.rename(away)
            num_failed += 1
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")
        away.rename(spec)
        publish_folder(source, uri)

    monkeypatch.setattr(storage, "publish_folder", gone)
    result = train(context, Workers())
    assert result["storage"]["failed_checkpoints"] == 20
    assert steps_of(context.spec.output) == [6]


def test_a_last_checkpoint_that_is_written_slowly_is_waited_for(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than the patience with storage that is away, for it has no failure and many bytes."""
    publish_folder = storage.publish_folder

    def slow(source: Path, uri: str) -> None:
        time.sleep(2)
        publish_folder(source, uri)

    monkeypatch.setattr(checkpointer, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(checkpointer, "SLOWEST_BYTES_PER_SECOND", 1e4)
    monkeypatch.setattr(checkpointer, "TELL_SECONDS", 0.1)
    monkeypatch.setattr(storage, "publish_folder", slow)
    told: list[int] = []
    monkeypatch.setattr(JobContext, "alive", lambda self, step: told.append(step))
    context = pipeline.context("pretrain")
    assert train(context, Workers())["storage"]["failed_checkpoints"] == 0
    assert steps_of(context.spec.output)[-1] == 6
    assert told.count(6) >= 10, "a watchdog would take the wait for a hang"


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The disk is full for the checkpoints named in `full`; those in `published` were published, in this order."""
    told: dict[str, list[str]] = {"full": [], "published": []}
    publish_folder = storage.publish_folder

    def publish(source: Path, uri: str) -> None:
        with storage.disk_space("a checkpoint", uri):
            if storage.name(uri) in told["full"]:
                raise OSError(errno.ENOSPC, "No space left on device")
        publish_folder(source, uri)
        told["published"].append(storage.name(uri))

    monkeypatch.setattr(storage, "publish_folder", publish)
    return told


def test_a_phases_end_that_cannot_be_written_ends_no_training(
    pipeline: Any, monkeypatch: pytest.MonkeyPatch, full_disk: dict[str, list[str]]
) -> None:
    """There is space again two steps after the phase's end, whose checkpoint no newer one has replaced."""
    full_disk["full"].append("step-00000003")
    step = Status.step

    def space_at_step_5(self: Any, *arguments: Any) -> None:
        step(self, *arguments)
        if self._state.progress.step == 5:
            full_disk["full"].clear()

    monkeypatch.setattr(Status, "step", space_at_step_5)
    phases = [{"steps": 3, "learning_rate": 1e-3}] * 2
    context = pipeline.context("pretrain", training__pretrain__phases=phases, training__pretrain__keep_checkpoints=1)
    assert train(context, Workers())["storage"]["failed_checkpoints"] >= 1
    assert steps_of(context.spec.output) == [3, 6]


def test_a_stop_without_space_for_a_checkpoint_is_a_stop(
    pipeline: Any, monkeypatch: pytest.MonkeyPatch, full_disk: dict[str, list[str]]
) -> None:
    """It is not a problem that ends the run for good."""
    monkeypatch.setattr(stopping, "CHECK_SECONDS", 0.0)
    full_disk["full"] += [f"step-{number:08d}" for number in range(7)]
    context = pipeline.context("pretrain")
    StopRequest(context.spec.folder).make("its run was cancelled")
    with pytest.raises(StoppedError, match="its run was cancelled"):
        train(context, Workers())


def test_a_checkpoint_is_written_once_where_older_ones_cannot_be_deleted(
    pipeline: Any, full_disk: dict[str, list[str]]
) -> None:
    """The claim of an evaluation on the older one cannot be read."""
    options = {"checkpoint_every_steps": 3, "keep_checkpoints": 1}
    context = pipeline.context("pretrain", **{f"training__pretrain__{name}": value for name, value in options.items()})
    storage.write_bytes(storage.join(context.spec.output, "claims", "step-00000003", "evaluation.json"), b"{")
    train(context, Workers())
    assert full_disk["published"] == ["step-00000003", "step-00000006"]
    assert steps_of(context.spec.output) == [3, 6]


def test_too_little_space_is_said_before_anything_is_written(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "free_bytes", lambda uri: 1000)
    context = pipeline.context("pretrain")
    with pytest.raises(DataError, match=r"0\.00 GB free, a checkpoint needs .* GB - free some space"):
        train(context, Workers())
    assert not list(Path(context.spec.output).glob("step-*"))


def test_a_remote_run_needs_space_in_the_temporary_folder(
    pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "small"))
    monkeypatch.setattr(storage, "free_bytes", lambda uri: 1000 if uri == tempfile.tempdir else None)
    spec = pipeline.context("pretrain").spec.model_copy(update={"output": f"memory://full/{tmp_path.name}"})
    with pytest.raises(DataError, match=r"small has 0\.00 GB free, a checkpoint needs .* set TMPDIR to a larger disk"):
        train(JobContext(spec), Workers())
    assert steps_of(spec.output) == []


def write_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop waits for each checkpoint, so that none replaces another one."""
    save = Checkpointer.save

    def save_now(self: Checkpointer, snapshot: Any) -> None:
        save(self, snapshot)
        assert self._publisher.flush(60)

    monkeypatch.setattr(Checkpointer, "save", save_now)


@pytest.mark.parametrize(
    ("keeping", "most"),
    [
        ({"keep_checkpoints": 1}, 3),  # the first phase's end, the newest, and the last
        ({"keep_checkpoints": 2, "checkpoint_every_steps": 2}, 3),
        ({"keep_checkpoints": 1, "keep_every_steps": 2}, 5),
        ({"keep_checkpoints": 100, "keep_every_steps": 2}, 6),
    ],
)
def test_preflight_counts_the_checkpoints_that_pruning_leaves(
    pipeline: Any, monkeypatch: pytest.MonkeyPatch, keeping: dict[str, int], most: int
) -> None:
    """Two phases of three steps, and a checkpoint after each step unless said otherwise."""
    options = {"phases": [{"steps": 3, "learning_rate": 1e-3}] * 2, "checkpoint_every_steps": 1, **keeping}
    context = pipeline.context("pretrain", **{f"training__pretrain__{name}": value for name, value in options.items()})
    publish_folder, at_once = storage.publish_folder, []

    def publish(source: Path, uri: str) -> None:
        publish_folder(source, uri)
        at_once.append(len(checkpoints_of(context.spec.output)))

    monkeypatch.setattr(storage, "publish_folder", publish)
    write_at_once(monkeypatch)
    train(context, Workers())
    assert max(at_once) == most
    assert most_checkpoints(context.config.training.pretrain) == most


def test_fewer_kept_checkpoints_make_room(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three checkpoints fill the disk. A run that keeps one finds room for the next, and loses none that is needed."""
    options = {"training__pretrain__checkpoint_every_steps": 1, "training__pretrain__keep_checkpoints": 3}
    context = pipeline.context("pretrain", **options)
    with monkeypatch.context() as patch:
        write_at_once(patch)
        train_until(context, 4)
    run = context.spec.output
    assert steps_of(run) == [1, 2, 3]
    size = max(sum(file.stat().st_size for file in Path(uri).iterdir()) for uri in checkpoints_of(run))
    monkeypatch.setattr(storage, "free_bytes", lambda uri: int((3.5 - len(steps_of(run))) * size))
    kept: list[list[int]] = []
    publish_folder = storage.publish_folder
    monkeypatch.setattr(storage, "publish_folder", lambda *a: (kept.append(steps_of(run)), publish_folder(*a)))
    options |= {"training__pretrain__checkpoint_every_steps": 6, "training__pretrain__keep_checkpoints": 1}
    assert train(pipeline.context("pretrain", **options), Workers())["storage"]["failed_checkpoints"] == 0
    assert kept == [[3]], "the newest stays until the next is whole"
    assert steps_of(run) == [6]
