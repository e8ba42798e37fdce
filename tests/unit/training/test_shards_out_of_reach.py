"""Shards that are out of reach for a while cost a validation or some drawn pictures, never a training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from piti import storage
from piti.data.manifest import MANIFEST
from piti.data.shards import ShardReader
from piti.errors import AwayError
from piti.job import JobContext
from piti.training import samples
from piti.training.loop import train
from piti.training.metrics import read_metrics
from piti.training.observers import Observers
from piti.training.workers import Workers

EVERY_STEP = {"training__upsampler__validate_every_steps": 1, "training__upsampler__sample_every_steps": 1}


def validated(context: JobContext) -> list[int]:
    return [record["step"] for record in read_metrics(context.spec.output) if record["split"] == "validation"]


def test_a_manifest_that_is_away_ends_no_training(
    pipeline: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The manifests of pictures and companions are gone from the first step on: their samples' places are known."""
    monkeypatch.setattr(samples, "NUM_STEPS", 2)
    context: JobContext = pipeline.context("upsampler", **EVERY_STEP)
    for name in ("shards", "degraded"):
        shutil.copytree(context.spec.inputs[name], tmp_path / name)
        context.spec.inputs[name] = str(tmp_path / name)
    begin = Observers.begin

    def go(self: Observers) -> None:
        begin(self)
        for name in ("shards", "degraded"):
            (tmp_path / name / MANIFEST).unlink()

    monkeypatch.setattr(Observers, "begin", go)
    result = train(context, Workers())
    assert result["storage"]["lost"] == []
    assert validated(context) == [0, 1, 2, 3, 4, 5, 6]
    assert len(storage.list_names(storage.join(context.spec.output, "samples"))) == 6


@pytest.mark.parametrize("error", [OSError("Input/output error"), AwayError("the set does not answer")])
def test_a_validation_that_cannot_be_read_is_left_out_and_told(
    pipeline: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """No validation picture can be read after steps 3 and 6; a mistake in the program still ends the run."""
    monkeypatch.setattr(samples, "NUM_STEPS", 2)
    context: JobContext = pipeline.context("upsampler", **EVERY_STEP)
    read, step, failure = ShardReader.read, [0], [error]

    def failing(self: ShardReader, sample: int) -> dict[str, bytes]:
        if step[0] % 3 == 0 and step[0] and self.index.keys[sample] in self.shards.keys("validation"):
            raise failure[0]
        return read(self, sample)

    alive = JobContext.alive
    monkeypatch.setattr(ShardReader, "read", failing)
    monkeypatch.setattr(JobContext, "alive", lambda self, taken: (step.__setitem__(0, taken), alive(self, taken)))
    with caplog.at_level("INFO", logger="piti"):
        result = train(context, Workers())
    assert validated(context) == [0, 1, 2, 4, 5]
    what = [f"the {kind} of step {number}" for number in (3, 6) for kind in ("validation", "pictures")]
    assert result["storage"]["lost"] == what
    assert all(f"{missed} cannot be made and is left out" in caplog.text for missed in what)
    five = [record for record in read_metrics(context.spec.output) if record["split"] == "validation"][-1]
    assert result["final_validation"]["loss"] == five["loss"], "the last that there is"

    failure[0], step[0] = ValueError("a mistake"), 0
    with pytest.raises(Exception, match="a mistake"):
        train(pipeline.context("upsampler", run="other", **EVERY_STEP), Workers())
