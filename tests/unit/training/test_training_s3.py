"""Trained, killed and resumed with shards, run and job in an object store (moto speaks S3 over HTTP)."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import fsspec
import pytest

from piti import storage
from piti.checkpoints import newest_whole_checkpoint
from piti.job import JobContext
from piti.training.loop import train
from piti.training.workers import Workers
from tests.unit.training.test_training_resume import differences, everything, train_until


def in_bucket(context: JobContext, bucket: str) -> JobContext:
    """The same job with everything in the bucket."""
    shards = storage.join(bucket, "shards")
    fsspec.filesystem("s3").put(context.spec.inputs["shards"], shards, recursive=True)
    places = {"output": "runs/one", "folder": "jobs/one"}
    update = {name: storage.join(bucket, place) for name, place in places.items()}
    return JobContext(context.spec.model_copy(update={**update, "inputs": {"shards": shards}}))


def test_a_run_in_an_object_store_survives_a_kill_and_a_damaged_checkpoint(
    pipeline: Any, bucket: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = pipeline.context("pretrain")
    expected = everything(train(undisturbed, Workers())["checkpoint"], undisturbed)
    context = in_bucket(undisturbed, bucket)
    train_until(context, 5)
    newest = newest_whole_checkpoint(context.spec.output)
    assert newest == storage.join(context.spec.output, "step-00000004")
    file = storage.join(newest, "model.safetensors")
    content = bytearray(storage.read_bytes(file))
    content[-1] ^= 1
    storage.write_bytes(file, bytes(content))
    reads: Counter[str] = Counter()

    def counting(read: Any) -> Any:
        def counted(uri: str, *arguments: Any) -> Any:
            if uri.startswith("s3://") and not uri.endswith((".json", ".tar", ".parquet")):
                reads["/".join(uri.split("/")[-2:])] += 1
            return read(uri, *arguments)

        return counted

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "piti"):
        patch.setattr(storage, "fetch", counting(storage.fetch))
        patch.setattr(storage, "open_read", counting(storage.open_read))
        result = train(context, Workers())
    whole = ["step-00000002/model.safetensors", "step-00000002/ema.safetensors", "step-00000002/trainer.pt"]
    damaged = "step-00000004/model.safetensors"  # looked at a second time before it is set aside
    assert reads == Counter([damaged, damaged, *whole]), "a whole file was read more than once"
    assert "set a damaged checkpoint aside" in caplog.text
    assert "step-00000004/model.safetensors is not what was written" in caplog.text
    assert result["resumed_from_step"] == 2
    assert result["checkpoint"].startswith("s3://")
    assert differences(everything(result["checkpoint"], context), expected) == []
