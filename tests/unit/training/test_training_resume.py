"""A run that is killed and started again ends exactly as one that was not."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from piti import storage
from piti.checkpoints import (
    DAMAGED,
    checkpoint_uri,
    checkpoints_of,
    clear_leftovers,
    newest_step,
    newest_whole_checkpoint,
    remove_checkpoint,
)
from piti.diffusion import LossSecondMomentSampler
from piti.errors import AbandonedError, StoppedError
from piti.job import JobContext, StopRequest
from piti.models.checkpoints import load_model, load_trainer_state
from piti.training import stopping
from piti.training.gradients import StepLosses
from piti.training.loop import train
from piti.training.metrics import read_metrics
from piti.training.picture_losses import PictureLosses
from piti.training.state import TrainingState
from piti.training.status import Status
from piti.training.stopping import StopSign
from piti.training.workers import Workers
from tests.e2e.runs import wait_for


class PlugPulledError(BaseException):
    """Stands for a process that ends at once."""


def train_until(context: JobContext, last_step: int) -> None:
    """Train in a process that dies when it has taken `last_step` steps."""

    def step_and_die(self: Status, losses: StepLosses, learning_rate: float) -> None:
        step(self, losses, learning_rate)
        if self._state.progress.step >= last_step:
            raise PlugPulledError

    step = Status.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Status, "step", step_and_die)
        with pytest.raises(PlugPulledError):
            train(context, Workers())


def everything(checkpoint: str, context: JobContext) -> dict[str, Any]:
    """All that a checkpoint holds, but for the time it took."""
    network = "upsampler" if context.spec.name == "upsampler" else "base"
    config = getattr(context.config.models, network)
    trainer = load_trainer_state(checkpoint)
    del trainer["progress"]["seconds"]
    return {
        "model": dict(load_model(checkpoint, config, "model").state_dict()),
        "ema": dict(load_model(checkpoint, config, "ema").state_dict()),
        "trainer": trainer,
    }


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Paths at which two nested containers differ; tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [where]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{where}: keys"]
        return [path for key in one for path in differences(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, list | tuple):
        return [
            path for i, pair in enumerate(zip(one, other, strict=True)) for path in differences(*pair, f"{where}/{i}")
        ]
    return [] if one == other else [where]


@pytest.mark.parametrize(
    ("stage", "phase_steps"), [("pretrain", [6]), ("stage1", [4, 2]), ("stage2", [6]), ("upsampler", [6])]
)
def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(pipeline: Any, stage: str, phase_steps: list[int]) -> None:
    """Killed at step 5, resumed from the checkpoint at step 4, across an epoch's end (12 samples, batches of 4).

    With dropout, dropped conditions, EMA, for stage 1 the beginning of a phase at step 4 and, for the upsampler, the
    critic and its optimizer. Of 1000 timesteps, hardly one has a full history so soon: loss-aware drawing has a test of
    its own below.
    """
    if before := {"stage1": "pretrain", "stage2": "stage1"}.get(stage):
        pipeline.finish(before)
    phases = [{"steps": steps, "learning_rate": 2e-3, "condition_dropout": 0.3} for steps in phase_steps]
    options = {f"training__{stage}__phases": phases}
    whole = pipeline.context(stage, run="whole", **options)
    undisturbed = train(whole, Workers())

    broken = pipeline.context(stage, run="broken", **options)
    train_until(broken, 5)
    newest = newest_whole_checkpoint(broken.spec.output)
    assert newest is not None
    assert newest.endswith("step-00000004")
    resumed = train(broken, Workers())

    assert differences(everything(undisturbed["checkpoint"], whole), everything(resumed["checkpoint"], broken)) == []
    assert resumed["initial_validation"] == undisturbed["initial_validation"]
    assert resumed["final_validation"] == undisturbed["final_validation"]
    about_the_machine = ("time", "pictures_per_second", "memory_gigabytes", "waiting_for_data")
    kept = [
        [
            {name: value for name, value in record.items() if name not in about_the_machine}
            for record in read_metrics(context.spec.output)
        ]
        for context in (whole, broken)
    ]
    assert kept[0] == kept[1], "metrics.jsonl has other records after a resume"


def test_a_run_resumed_amid_loss_aware_timesteps_equals_an_undisturbed_one(pipeline: Any) -> None:
    """Three timesteps, so that all histories are full by step 12, where it is killed, and drawing is no longer uniform.

    Histories that a resumed run had lost would draw other timesteps: a run that forgets them ends elsewhere.
    """
    options: dict[str, Any] = {
        "diffusion__base__steps": 3,
        "training__pretrain__phases": [{"steps": 20, "learning_rate": 2e-3, "condition_dropout": 0.3}],
        "training__pretrain__keep_checkpoints": 10,
    }
    whole = pipeline.context("pretrain", run="whole", **options)
    undisturbed = train(whole, Workers())
    broken = pipeline.context("pretrain", run="broken", **options)
    train_until(broken, 13)
    newest = newest_whole_checkpoint(broken.spec.output)
    assert newest is not None
    assert newest.endswith("step-00000012")
    assert not is_uniform(load_trainer_state(newest)["timesteps"]), "the histories are not full: nothing is proved"
    resumed = train(broken, Workers())
    expected = everything(undisturbed["checkpoint"], whole)
    assert differences(expected, everything(resumed["checkpoint"], broken)) == []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LossSecondMomentSampler, "load_state_dict", lambda self, state: None)
        forget_after(broken, 12)
        forgetful = train(broken, Workers())
    found = differences(expected, everything(forgetful["checkpoint"], broken))
    assert any(path.startswith("/model") for path in found)
    assert "/trainer/timesteps/losses" in found


def forget_after(context: JobContext, step: int) -> None:
    """Delete the run's later checkpoints."""
    for uri in checkpoints_of(context.spec.output):
        if uri > checkpoint_uri(context.spec.output, step):
            remove_checkpoint(uri)


def is_uniform(state: dict[str, Any]) -> bool:
    """Whether a saved loss-aware sampler draws all timesteps alike."""
    sampler = LossSecondMomentSampler(len(state["counts"]))
    sampler.load_state_dict(state)
    weights = sampler.weights()
    return torch.equal(weights, weights[:1].expand_as(weights))


def test_a_critic_that_was_not_restored_would_show(pipeline: Any) -> None:
    """The comparison above can fail: an upsampler that is resumed at step 4 with a fresh critic ends elsewhere."""
    options = {"training__upsampler__discriminator_learning_rate": 1e-2}
    whole = pipeline.context("upsampler", run="whole", **options)
    undisturbed = train(whole, Workers())
    broken = pipeline.context("upsampler", run="broken", **options)
    train_until(broken, 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PictureLosses, "load_state_dict", lambda self, state: None)
        forgetful = train(broken, Workers())
    assert forgetful["resumed_from_step"] in (2, 4)
    found = differences(everything(undisturbed["checkpoint"], whole), everything(forgetful["checkpoint"], broken))
    assert any("critic" in path for path in found)
    assert any(path.startswith("/model") for path in found), "the critic does not teach the upsampler anything"


def test_a_damaged_newest_checkpoint_is_passed_over(pipeline: Any) -> None:
    """One flipped byte in the newest checkpoint: the one before it is the one to go on from."""
    context = pipeline.context("pretrain")
    train(context, Workers())
    run = context.spec.output
    newest = newest_whole_checkpoint(run)
    assert newest is not None
    assert newest.endswith("step-00000006")
    path = storage.local_path(newest) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    assert newest_whole_checkpoint(run) == storage.join(run, "step-00000004")
    again = train(context, Workers())
    assert again["resumed_from_step"] == 4
    assert newest_whole_checkpoint(run) == again["checkpoint"] == newest


def test_a_damaged_newest_checkpoint_costs_no_newer_one(pipeline: Any) -> None:
    """The last two of six are damaged, as many as are kept: the run begins again, and what it writes counts and stays."""
    options = {"training__pretrain__checkpoint_every_steps": 1, "training__pretrain__keep_checkpoints": 2}
    context = pipeline.context("pretrain", **options)
    train(context, Workers())
    run = context.spec.output
    for uri in checkpoints_of(run):
        (storage.local_path(uri) / "trainer.pt").write_bytes(b"damaged")
    train_until(context, 3)
    written = newest_step(run)
    assert written in (1, 2), "what is not written yet when step 3 ends gives way to nothing"
    clear_leftovers(run)
    aside = [uri for uri in storage.list_names(run) if storage.exists(storage.join(run, uri, DAMAGED))]
    assert aside == ["step-00000005", "step-00000006"], "for people to look at"
    again = train(context, Workers())
    assert again["resumed_from_step"] == written
    assert newest_whole_checkpoint(run) == again["checkpoint"]
    assert [storage.name(uri) for uri in checkpoints_of(run)] == ["step-00000005", "step-00000006"]


def test_logged_means_go_on_where_they_were(pipeline: Any) -> None:
    """Means of three steps, a checkpoint after every second one: the record of step 6 is of steps 4, 5 and 6, although
    the run is killed at step 5 and resumed at 4."""
    options = {"training__pretrain__log_every_steps": 3}
    whole, broken = (pipeline.context("pretrain", run=run, **options) for run in ("whole", "broken"))
    train(whole, Workers())
    train_until(broken, 5)
    assert train(broken, Workers())["resumed_from_step"] == 4
    names = ("step", "loss", "mse", "vb", "gradient_norm")
    expected, found = (
        [[record[name] for name in names] for record in read_metrics(run.spec.output) if record["split"] == "train"]
        for run in (whole, broken)
    )
    assert [record[0] for record in expected] == [3, 6]
    assert found == expected


def test_a_checkpoint_without_sums_is_resumed(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As earlier versions wrote them."""
    context, survivors = pipeline.context("pretrain"), TrainingState.survivors
    with monkeypatch.context() as patch:

        def without_sums(self: TrainingState) -> dict[str, Any]:
            return {name: survivor for name, survivor in survivors(self).items() if name != "step_sums"}

        patch.setattr(TrainingState, "survivors", without_sums)
        train_until(context, 5)
    assert train(context, Workers())["resumed_from_step"] == 4


def test_a_run_that_was_killed_after_its_last_checkpoint_only_reports(pipeline: Any) -> None:
    """Resuming from the final checkpoint trains nothing and gives the same result."""
    context = pipeline.context("pretrain")
    first = train(context, Workers())
    again = train(context, Workers())
    assert again["data"]["samples_read"] == 0
    assert (first["resumed_from_step"], again["resumed_from_step"]) == (None, 6)
    about_the_job = {"pictures_per_second": 0, "data": 0, "storage": 0, "resumed_from_step": None}
    assert again | about_the_job == first | about_the_job


def test_old_checkpoints_are_deleted(pipeline: Any) -> None:
    """keep_checkpoints 2 of three written."""
    context = pipeline.context("pretrain")
    train(context, Workers())
    names = [name for name in storage.list_names(context.spec.output) if name.startswith("step-")]
    assert names == ["step-00000004", "step-00000006"]


@pytest.fixture
def asked_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage is looked at when the loop asks, after every step, and not by a thread."""
    after = StopSign.after

    def look_and_ask(self: StopSign, step: int) -> StoppedError | None:
        self._look()
        return after(self, step)

    monkeypatch.setattr(stopping, "CHECK_SECONDS", 0.0)
    monkeypatch.setattr(StopSign, "_watch", lambda self: None)
    monkeypatch.setattr(StopSign, "after", look_and_ask)


class Abandoned(JobContext):
    """A job whose last follower is gone when it has taken three steps (it asks after each)."""

    _num_asked = 0

    def is_abandoned(self) -> bool:
        self._num_asked += 1
        return self._num_asked >= 3


def test_an_abandoned_run_leaves_a_checkpoint_from_which_it_ends_the_same(
    pipeline: Any, asked_every_step: None
) -> None:
    undisturbed = train(pipeline.context("pretrain", run="followed"), Workers())
    context = pipeline.context("pretrain", run="abandoned")
    with pytest.raises(AbandonedError, match="nobody has followed this job"):
        train(Abandoned(context.spec), Workers())
    newest = newest_whole_checkpoint(context.spec.output)
    assert newest is not None
    assert storage.name(newest) == "step-00000003", "one that the settings do not ask for"
    resumed = train(context, Workers())
    assert differences(everything(resumed["checkpoint"], context), everything(undisturbed["checkpoint"], context)) == []


def test_a_run_that_is_asked_to_end_leaves_a_checkpoint(pipeline: Any, asked_every_step: None) -> None:
    """As its driver asks where it gets SIGTERM, and a flow whose run is cancelled."""
    context = pipeline.context("pretrain")
    StopRequest(context.spec.folder).make("its run was cancelled")
    StopRequest(context.spec.folder).make("another reason, later")
    with pytest.raises(StoppedError, match="its run was cancelled") as stopped:
        train(context, Workers())
    assert stopped.value.retryable
    assert newest_whole_checkpoint(context.spec.output) == storage.join(context.spec.output, "step-00000001")


def stop_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "piti-stop-sign"]


def test_no_step_waits_for_storage_to_say_whether_to_stop(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage does not answer before the last step. The thread that asks it ends with the run."""
    gate, read_json = threading.Event(), storage.read_json

    def hang(uri: str) -> Any:
        if uri.endswith("stop.json"):
            assert gate.wait(20), "the loop waits"
        return read_json(uri)

    step = Status.step

    def answer_at_step_6(self: Status, *arguments: Any) -> None:
        step(self, *arguments)
        if self._state.progress.step == 6:
            gate.set()

    monkeypatch.setattr(stopping, "CHECK_SECONDS", 0.0)
    monkeypatch.setattr(stopping, "STOP_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(storage, "read_json", hang)
    monkeypatch.setattr(Status, "step", answer_at_step_6)
    before = stop_threads()
    assert train(pipeline.context("pretrain"), Workers())["steps"] == 6
    for thread in set(stop_threads()) - set(before):
        thread.join(10)
        assert not thread.is_alive()


def test_a_request_reaches_the_run_through_the_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "STOP_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(stopping, "CHECK_SECONDS", 0.0)
    request, context = StopRequest(str(tmp_path)), SimpleNamespace(is_preempted=lambda: False)
    context.stop_reason = lambda: (asked := request.reason()) and StoppedError(asked)
    monkeypatch.setattr("piti.job.STOP_LOOK_SECONDS", 0.01)
    sign = StopSign(cast(JobContext, context), Workers(), 0)
    assert sign.after(1) is None
    request.make("its run was cancelled")
    steps = iter(range(2, 1000))
    found = wait_for("the thread's answer", lambda: sign.after(next(steps)), 10)
    assert str(found) == "its run was cancelled"
    sign.close()


def test_a_run_is_asked_about_every_five_seconds_at_the_same_step_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of a second by the clock: the looks lie 1, 2, 4, 5, 5, ... steps apart."""
    clock = [0.0]
    monkeypatch.setattr("piti.training.stopping.time.monotonic", lambda: clock[0])
    asked: list[int] = []

    class Asked:
        def is_preempted(self) -> bool:
            asked.append(round(clock[0]))
            return False

        def stop_reason(self) -> None:
            return None

    sign = StopSign(cast(JobContext, Asked()), Workers(), 0)
    for step in range(1, 30):
        clock[0] += 1.0
        sign.after(step)
    sign.close()
    assert asked == [1, 3, 7, 12, 17, 22, 27]
