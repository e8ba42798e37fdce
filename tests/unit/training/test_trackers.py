"""MLflow and Weights & Biases, the real packages: they get what metrics.jsonl gets, and a run does not need them."""

from __future__ import annotations

import io
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from piti import storage
from piti.job import JobContext
from piti.training import observers
from piti.training.loop import train
from piti.training.metrics import MetricsLog, read_metrics
from piti.training.publisher import Publisher
from piti.training.status import Status
from piti.training.trackers import MLflow, TensorBoard, Tracker, WeightsAndBiases
from piti.training.workers import Workers

TRACKERS = (TensorBoard, MLflow, WeightsAndBiases)
SPLITS = ("train", "validation")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is sent anywhere, nothing is kept outside of the test's folder."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_ALLOW_FILE_STORE": "true", "WANDB_ERROR_REPORTING": "false", "WANDB_CONFIG_DIR": str(tmp_path / "wandb-config"),
        "WANDB_CACHE_DIR": str(tmp_path / "wandb-cache"), "WANDB_DATA_DIR": str(tmp_path / "wandb-data"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


def record(run: str, first_step: int, tracker: MLflow | WeightsAndBiases) -> None:
    """Five steps, validation after each second, a picture at the end: as a run tells of them."""
    picture = io.BytesIO()
    Image.new("RGB", (4, 3), (250, 0, 0)).save(picture, "png")
    publisher = Publisher()
    log = MetricsLog(run, first_step, publisher, [tracker])
    for step in range(first_step + 1, first_step + 6):
        log.add(step, "train", {"loss": 1 / step, "gradient_norm": 2.0})
        if step % 2 == 0:
            log.add(step, "validation", {"loss": 3 / step})
    log.add_picture(step, "samples", picture.getvalue())
    log.publish()
    tracker.end()
    assert publisher.close() + tracker.close() == []


def figures(run: str) -> dict[str, dict[int, float]]:
    """What metrics.jsonl holds: name -> step -> value."""
    found: dict[str, dict[int, float]] = {}
    for entry in read_metrics(run):
        for name, value in entry.items():
            if name not in ("step", "time", "split"):
                found.setdefault(f"{entry['split']}/{name}", {})[entry["step"]] = value
    return found


def test_mlflow_has_the_figures_of_a_run_and_of_its_resumed_part(tmp_path: Path) -> None:
    """Five steps; killed, and resumed after the third: one run with eight steps."""
    from mlflow import MlflowClient

    run, uri = str(tmp_path / "run"), f"file://{tmp_path}/mlflow"
    for first_step in (0, 3):
        record(run, first_step, MLflow(uri, "coco-mask", "stage1 abc", run))
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("coco-mask")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status, found.data.tags["piti.run"]) == ("stage1 abc", "FINISHED", run)
    expected = figures(run)
    assert set(expected["train/loss"]) == set(range(1, 9))
    for name, values in expected.items():
        history = client.get_metric_history(found.info.run_id, name)
        assert {metric.step: metric.value for metric in history} == values, name
    (folder,) = {artifact.path for artifact in client.list_artifacts(found.info.run_id)}
    assert [a.path for a in client.list_artifacts(found.info.run_id, folder) if a.path.endswith(".png")]


def test_mlflow_finds_a_run_again_whose_path_has_quotes(tmp_path: Path) -> None:
    """And takes no other for it that has the same name in another folder."""
    from mlflow import MlflowClient

    uri = f"file://{tmp_path}/mlflow"
    runs = [str(tmp_path / folder / "runs" / "0123abcd") for folder in ("o'brien", 'the "new" o\'brien', "brien")]
    for first_step in (0, 3):
        for run in runs:
            record(run, first_step, MLflow(uri, "coco-mask", "stage1 abc", run))
    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name("coco-mask").experiment_id])
    assert sorted(run.data.tags["piti.run"] for run in found) == sorted(runs)
    for run in found:
        steps = {metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")}
        assert steps == set(range(1, 9)), run.data.tags["piti.run"]


def leveldb_log(content: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, after seven bytes of W&B's own: checksum, length, whole or first ... last."""
    at, record = 7, b""
    while at + 7 <= len(content):
        if (room := -at % 32_768) < 7:  # what is left of a block holds no record
            at += room
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def test_weights_and_biases_offline_leaves_files_to_sync(tmp_path: Path) -> None:
    """A run and its resumed part have the same id, so that they are one run once they are sent. Its path may
    have an apostrophe."""
    from wandb.proto.wandb_internal_pb2 import Record

    run = str(tmp_path / "o'brien" / "0123abcd")
    for first_step in (0, 3):
        record(run, first_step, WeightsAndBiases("offline", "coco-mask", "stage1 abc", run))
    files = sorted(Path(run, "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)
    assert len(files) == 2
    seen: dict[str, dict[int, float]] = {}
    for file in files:
        for data in leveldb_log(file.read_bytes()):
            entry = Record.FromString(data)
            if entry.WhichOneof("record_type") == "run":
                assert (entry.run.run_id, entry.run.project, entry.run.display_name) == (
                    "0123abcd",
                    "coco-mask",
                    "stage1 abc",
                )
            items = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in entry.history.item}
            for name, value in items.items():
                if not name.startswith(("_", "samples/")):
                    seen.setdefault(name, {})[items["_step"]] = value
    assert seen == figures(run)
    assert list(Path(run, "wandb").glob("offline-run-*/files/media/images/*.png"))


def test_a_tracker_that_cannot_be_reached_stops_nothing(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("piti.training.publisher.RETRY_SECONDS", 0.1)
    context = pipeline.context("pretrain", tracking__mlflow="http://127.0.0.1:9")
    result = train(context, Workers())
    assert result["steps"] == 6
    assert result["storage"]["lost"] == ["MLflow"]
    assert result["storage"]["failed_writes"] >= 3
    assert "tensorboard" in storage.list_names(context.spec.output)
    assert [entry["step"] for entry in read_metrics(context.spec.output) if entry["split"] == "train"] == list(
        range(1, 7)
    )


@pytest.fixture
def hang(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """A function that returns no sooner than the test is over."""
    over, has_given_up = threading.Event(), threading.Event()

    def hang(*_: object) -> None:
        if not over.wait(60):
            has_given_up.set()
        raise OSError("the test is over")

    monkeypatch.setattr(observers, "CLOSE_SECONDS", 3.0)
    yield hang
    over.set()
    assert not has_given_up.is_set(), "the run waited for it"


def all_but_it_is_there(context: JobContext, result: dict[str, Any], name: str) -> None:
    """Every step, validation and record; `storage` names the one that has them not."""
    assert result["steps"] == 6
    assert result["storage"] == {"failed_writes": 0, "failed_checkpoints": 0, "lost": [name]}
    steps = {split: [r["step"] for r in read_metrics(context.spec.output) if r["split"] == split] for split in SPLITS}
    assert steps == {"train": [1, 2, 3, 4, 5, 6], "validation": [0, 3, 6]}


@pytest.mark.parametrize("kind", TRACKERS, ids=lambda kind: kind.__name__)
def test_a_tracker_that_hangs_stops_neither_training_nor_another(
    pipeline: Any, monkeypatch: pytest.MonkeyPatch, hang: Callable[..., None], kind: type[Tracker]
) -> None:
    told: dict[str, list[int]] = {other.name: [] for other in TRACKERS if other is not kind}
    ended: list[str] = []
    for other in TRACKERS:
        write = lambda self, events: told[self.name].extend(step for *_, step in events)  # noqa: E731
        monkeypatch.setattr(other, "_write", hang if other is kind else write)
        monkeypatch.setattr(other, "_finish", lambda self: ended.append(self.name))
    context = pipeline.context("pretrain", tracking__mlflow="http://127.0.0.1:9", tracking__wandb="offline")
    all_but_it_is_there(context, train(context, Workers()), kind.name)
    assert {name: set(steps) for name, steps in told.items()} == {name: set(range(7)) for name in told}
    assert sorted(ended) == sorted(told)


def test_a_server_that_accepts_and_never_answers_stops_nothing(
    pipeline: Any, monkeypatch: pytest.MonkeyPatch, hang: Callable[..., None]
) -> None:
    """MLflow's own client waits for it. The second step comes once it does."""
    step = Status.step
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)

        def connected(self: Status, *arguments: Any) -> None:
            step(self, *arguments)
            if self._state.progress.step == 1:
                connections.append(server.accept()[0])

        connections: list[socket.socket] = []
        monkeypatch.setattr(Status, "step", connected)
        context = pipeline.context("pretrain", tracking__mlflow=f"http://127.0.0.1:{server.getsockname()[1]}")
        all_but_it_is_there(context, train(context, Workers()), "MLflow")
    for connection in connections:
        connection.close()
