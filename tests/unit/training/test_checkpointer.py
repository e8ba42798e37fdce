"""Checkpoints are written beside the loop: whole, in order, of the step they say, and training outlives bad storage."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from piti import storage
from piti.checkpoints import Checkpoint, checkpoint_uri, checkpoints_of, verify_checkpoint
from piti.errors import DataError
from piti.models.checkpoints import load_model, load_trainer_state
from piti.training import publisher, state
from piti.training.loop import train
from piti.training.status import Status
from piti.training.workers import Workers

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

    def full(source: Path, uri: str, marker: str = storage.MARKER) -> None:
        with storage.disk_space("a checkpoint", uri):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage, "publish_folder", full)
    context = pipeline.context("pretrain")
    with pytest.raises(DataError, match=r"no space left for a checkpoint in .*step-00000006"):
        train(context, Workers())
    assert steps_of(context.spec.output) == []


def test_too_little_space_is_said_before_anything_is_written(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "free_bytes", lambda uri: 1000)
    context = pipeline.context("pretrain")
    with pytest.raises(DataError, match=r"0\.00 GB free, a checkpoint needs .* GB - free some space"):
        train(context, Workers())
    assert not list(Path(context.spec.output).glob("step-*"))
