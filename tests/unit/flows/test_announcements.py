"""Which finished checkpoints are told to Prefect, and which of them it is to evaluate."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.events import DeploymentTriggerTypes
from prefect.server.events.schemas.automations import EventTrigger
from prefect.server.events.schemas.events import ReceivedEvent, Resource
from pydantic import TypeAdapter

import flows.announcements as announcements
from flows.announcements import EVENT, Announcer, evaluation_trigger
from piti import storage
from piti.checkpoints import FORMAT
from piti.config.presets import load_config
from piti.evaluation.evaluation_plan import EvaluationPlan
from piti.evaluation.targets import make_target
from piti.plan import Plan
from piti.settings import PROJECT


class Training:
    """A training of the demo that a test takes forward by hand; `told` are its events: (step, evaluate)."""

    def __init__(self, root: Path, on_checkpoint: str) -> None:
        self.overrides = {"root": str(root), "evaluation.on_checkpoint": on_checkpoint}
        self.plan = Plan(load_config("demo-sketch", self.overrides))
        self.told: list[tuple[str, str]] = []
        self.payloads: list[dict[str, Any]] = []
        self.resources: list[dict[str, str]] = []

    def emit(self, event: str, resource: dict[str, str], payload: dict[str, Any]) -> None:
        assert event == EVENT
        self.told.append((resource["prefect.resource.id"].rsplit(".", 1)[1], resource["piti.evaluate"]))
        self.payloads.append(payload)
        self.resources.append(resource)

    def checkpoint(self, run: str, step: int) -> str:
        uri = storage.join(run, f"step-{step:08d}")
        about = {"format": FORMAT, "sha256": {"ema.safetensors": uri}, "step": step, "stage": "stage2"}
        storage.write_json(storage.join(uri, storage.MARKER), about)
        return uri


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Training:
    training = Training(tmp_path, request.param)
    monkeypatch.setattr(announcements, "emit_event", training.emit)
    return training


@pytest.mark.parametrize(
    ("train", "early", "at_the_end"),
    [
        ("none", ["no", "no"], {}),
        ("final", ["no", "no"], {"step-00000020": "yes"}),
        ("every", ["no", "no"], {"step-00000010": "yes", "step-00000020": "yes"}),
    ],
    indirect=["train"],
)
def test_checkpoints_before_there_is_an_upsampler_are_evaluated_at_the_end(
    train: Training, early: list[str], at_the_end: dict[str, str]
) -> None:
    announcer = Announcer(train.plan, "demo-sketch", train.overrides)
    for step in (10, 20):
        train.checkpoint(train.plan.stage2.output, step)
        announcer.look()
        announcer.look()
    assert [evaluates for _, evaluates in train.told] == early
    train.checkpoint(train.plan.upsampler.output, 5)
    announcer.finish()
    assert dict(train.told[2:]) == at_the_end
    assert len(train.told) == 2 + len(at_the_end)
    assert covered(train.resources) == [evaluates == "yes" for _, evaluates in train.told]


def covered(resources: list[dict[str, str]]) -> list[bool]:
    """Which events the registered trigger answers, by the server's own rule."""
    registered = evaluation_trigger()
    registered.set_deployment_id(uuid.uuid4())
    trigger = EventTrigger.model_validate(registered.as_automation().trigger.model_dump())
    now = datetime.now(UTC)
    return [
        trigger.covers(ReceivedEvent(occurred=now, event=EVENT, resource=Resource(told), id=uuid.uuid4(), received=now))
        for told in resources
    ]


@pytest.mark.parametrize("train", ["every"], indirect=True)
def test_with_an_upsampler_each_is_evaluated_at_once_and_none_twice(train: Training) -> None:
    train.checkpoint(train.plan.upsampler.output, 5)
    old = train.checkpoint(train.plan.stage2.output, 5)
    announcer = Announcer(train.plan, "demo-sketch", train.overrides)
    new = train.checkpoint(train.plan.stage2.output, 10)
    announcer.look()
    assert train.told == [("step-00000010", "yes")]
    assert train.payloads[0] == {"config": "demo-sketch", "overrides": train.overrides, "checkpoint": new}
    report = EvaluationPlan(train.plan, make_target(train.plan, new)).report
    storage.write_json(report.marker, {})
    announcer.finish()
    assert train.told[1:] == [("step-00000005", "yes")], (
        f"{new} has its report; who finished {old} died before saying so"
    )
    announcer.finish()
    assert len(train.told) == 2


def test_prefect_yaml_registers_the_same_automation() -> None:
    """As Prefect reads the file: name, match, parameters, and that it is switched on; which checkpoints the config says."""
    file = yaml.safe_load((PROJECT / "prefect.yaml").read_text())
    (entry,) = [entry for entry in file["deployments"] if entry["name"] == "evaluate"]
    (written,) = entry["triggers"]
    read = TypeAdapter[DeploymentTriggerTypes](DeploymentTriggerTypes).validate_python(written)
    assert read.model_dump() == evaluation_trigger().model_dump()
    assert read.enabled
