"""Numbers that are lost: nothing of them is published, and the run goes on once from what was good."""

from __future__ import annotations

import json
import math
import pickle
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from piti import storage
from piti.checkpoints import checkpoints_of, newest_whole_checkpoint
from piti.data.loader import TrainingLoader
from piti.errors import DivergedError, PitiError
from piti.job import JobContext
from piti.training import batches, divergence, ema
from piti.training.divergence import Divergence, are_finite
from piti.training.loop import train
from piti.training.stages import Examples, TrainingStage
from piti.training.workers import Workers
from tests.e2e.runs import wait_for

CPU = Workers()


class Stream(TrainingLoader):
    """The real loader; the steps' batches at the places `bad` of the stream are poison, and `seen` tells all keys."""

    bad: range = range(0)
    seen: list[tuple[int, list[str]]]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for part, batch in zip(self._parts(), super().__iter__(), strict=True):
            place = part.start // self._batch_size
            self.seen.append((place, batch["keys"]))
            yield {**batch, "is_poison": place in self.bad}


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> type[Stream]:
    """Poison makes pictures infinite."""
    examples = TrainingStage.examples

    def poisoned(self: TrainingStage, batch: dict[str, Any], device: torch.device) -> Examples:
        found = examples(self, batch, device)
        return replace(found, pictures=found.pictures * math.inf) if batch.get("is_poison") else found

    kind = type("S", (Stream,), {"seen": []})
    monkeypatch.setattr(batches, "TrainingLoader", kind)
    monkeypatch.setattr(TrainingStage, "examples", poisoned)
    monkeypatch.setattr(divergence, "MAX_SKIPPED_IN_A_ROW", 2)
    return kind


def steps(context: JobContext) -> list[int]:
    """Of the checkpoints that were published."""
    return [int(uri.rpartition("-")[2]) for uri in checkpoints_of(context.spec.output)]


def test_a_run_that_is_lost_goes_back_and_leaves_those_pictures_out(pipeline: Any, stream: type[Stream]) -> None:
    """Six steps; the stream's places 4 and 5 are poison. The last good checkpoint is that of step 4."""
    stream.bad = range(4, 6)
    context: JobContext = pipeline.context("pretrain")
    with pytest.raises(DivergedError, match=r"at step 6: the last 2 steps .* back to step 4 once") as caught:
        train(context, CPU)
    assert pickle.loads(pickle.dumps(caught.value)).retryable, "so that the flow starts another attempt"
    assert steps(context) == [2, 4]
    stream.seen.clear()
    result = train(context, CPU)
    assert (result["steps"], result["skipped_steps"], result["left_out_steps"]) == (6, 0, 2)
    after = stream.seen[:2]
    assert [place for place, _ in after] == [6, 7]
    stream.bad, stream.seen = range(0), []
    phases = [{"steps": 8, "learning_rate": 2e-3}]
    train(pipeline.context("pretrain", run="whole", training__pretrain__phases=phases), CPU)
    assert after == stream.seen[6:8], "the very pictures that an undisturbed stream has at these places"


def test_a_run_resumed_from_further_back_leaves_the_same_pictures_out(pipeline: Any, stream: type[Stream]) -> None:
    """It has diverged at places 4 and 5. The checkpoint of step 4, which it was to go back to, is damaged since."""
    stream.bad = range(4, 6)
    context: JobContext = pipeline.context("pretrain")
    with pytest.raises(DivergedError, match="back to step 4 once"):
        train(context, CPU)
    Path(context.spec.output, "step-00000004", "ema.safetensors").write_bytes(b"damaged")
    first, stream.seen = stream.seen[2:4], []
    result = train(context, CPU)
    assert (result["resumed_from_step"], result["left_out_steps"], result["skipped_steps"]) == (2, 2, 0)
    assert [place for place, _ in stream.seen[:4]] == [2, 3, 6, 7]
    assert stream.seen[:2] == first, "what was good is learned again"


def test_a_damaged_checkpoint_is_not_gone_back_to(
    pipeline: Any, stream: type[Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of step 4 is damaged by the time that step 6 shows the divergence."""
    stream.bad = range(4, 6)
    context: JobContext = pipeline.context("pretrain")
    newest, go_back = Path(context.spec.output, "step-00000004"), Divergence._go_back

    def damaged(self: Divergence, step: int) -> int | None:
        wait_for("the checkpoint of step 4", (newest / "DONE.json").exists, 30)
        (newest / "ema.safetensors").write_bytes(b"damaged")
        return go_back(self, step)

    monkeypatch.setattr(Divergence, "_go_back", damaged)
    with pytest.raises(DivergedError, match="back to step 2 once and leaves out the pictures of the 4 steps"):
        train(context, CPU)
    result = train(context, CPU)
    assert (result["resumed_from_step"], result["left_out_steps"]) == (2, 4)


def test_a_checkpoint_that_is_being_written_is_gone_back_to(
    pipeline: Any, stream: type[Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write of step 4's has begun when step 6 shows the divergence, and ends a second later."""
    stream.bad = range(4, 6)
    context: JobContext = pipeline.context("pretrain")
    publish_folder, lost = storage.publish_folder, threading.Event()
    show = Divergence._lost

    def slow(source: Path, uri: str) -> None:
        if uri.endswith("4"):
            assert lost.wait(60)
            time.sleep(1)
        publish_folder(source, uri)

    monkeypatch.setattr(storage, "publish_folder", slow)
    monkeypatch.setattr(Divergence, "_lost", lambda self, what: (lost.set(), show(self, what))[1])
    with pytest.raises(DivergedError, match="back to step 4 once and leaves out the pictures of the 2 steps"):
        train(context, CPU)
    assert steps(context) == [2, 4]
    result = train(context, CPU)
    assert (result["resumed_from_step"], result["left_out_steps"]) == (4, 2)


def test_the_second_time_the_run_ends_with_the_remedy(pipeline: Any, stream: type[Stream]) -> None:
    stream.bad = range(4, 100)
    context: JobContext = pipeline.context("pretrain")
    with pytest.raises(DivergedError):
        train(context, CPU)
    with pytest.raises(PitiError, match=r"diverged at step 6.*lower training.pretrain's learning_rate") as caught:
        train(context, CPU)
    assert not caught.value.retryable
    assert steps(context) == [2, 4], "what was good is still there"


def test_weights_to_begin_with_that_give_no_numbers_end_the_run_at_once(pipeline: Any, spoilt: None) -> None:
    with pytest.raises(PitiError, match="at step 0: the validation's mse and vb and loss came out") as caught:
        train(pipeline.context("pretrain"), CPU)
    assert not caught.value.retryable


@pytest.fixture
def spoilt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The average is spoilt from the update of step `request.param` on (default 0: from the beginning)."""
    from_update = getattr(request, "param", 0)
    begin, update, calls = ema.EMA.__init__, ema.EMA.update, [0]

    def spoil(average: ema.EMA) -> None:
        with torch.no_grad():
            next(value for value in average.averages.values() if value.ndim > 1).fill_(torch.nan)

    def spoiling_begin(self: ema.EMA, *arguments: Any) -> None:
        begin(self, *arguments)
        if from_update == 0:
            spoil(self)

    def spoiling_update(self: ema.EMA, *arguments: Any) -> None:
        update(self, *arguments)
        calls[0] += 1
        if calls[0] == from_update:
            spoil(self)

    monkeypatch.setattr(ema.EMA, "__init__", spoiling_begin)
    monkeypatch.setattr(ema.EMA, "update", spoiling_update)


@pytest.mark.parametrize("spoilt", [3], indirect=True)
def test_a_validation_that_is_no_number_is_not_told(pipeline: Any, spoilt: None) -> None:
    """Step 3 validates; the checkpoint of step 2 is the last."""
    context: JobContext = pipeline.context("pretrain", training__pretrain__keep_checkpoints=1)
    with pytest.raises(DivergedError, match=r"at step 3: the validation's .* back to step 2 once"):
        train(context, CPU)
    assert steps(context) == [2]
    lines = [
        line for file in Path(context.spec.output).glob("metrics*.jsonl") for line in file.read_text().splitlines()
    ]

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    told = [json.loads(line, parse_constant=refuse) for line in lines]
    assert [record["step"] for record in told if record["split"] == "validation"] == [0]


@pytest.mark.parametrize("spoilt", [4], indirect=True)
def test_weights_that_are_no_numbers_push_no_good_checkpoint_out(pipeline: Any, spoilt: None) -> None:
    options = {"training__pretrain__keep_checkpoints": 1, "training__pretrain__validate_every_steps": 100}
    context: JobContext = pipeline.context("pretrain", **options)
    with pytest.raises(DivergedError, match=r"at step 4: weights or their averages .* back to step 2 once"):
        train(context, CPU)
    assert steps(context) == [2]
    assert newest_whole_checkpoint(context.spec.output) is not None


def test_what_counts_as_finite() -> None:
    good = [torch.zeros(3), torch.tensor(2), torch.full((2, 2), -3e38), torch.zeros(0)]
    assert are_finite(good)
    for bad in (math.nan, math.inf, -math.inf):
        assert not are_finite([*good, torch.tensor([0.0, bad])])
