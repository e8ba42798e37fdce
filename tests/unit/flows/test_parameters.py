"""Parameters of the flows are refused before a run has a name, a state or a log that could repeat them."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from prefect import Flow

from flows.evaluate import evaluate
from flows.full_train import full_train
from flows.prepare import prepare
from flows.study import study
from flows.train import train
from piti.errors import ConfigError

SECRET = "s3://key:hunter2/x@bucket/mine.yaml"
FLOWS: list[Flow[..., Any]] = [full_train, prepare, train, evaluate, study]
CASES = [
    *((flow, {"config": SECRET}) for flow in FLOWS),
    *((flow, {"overrides": {"root": SECRET}}) for flow in FLOWS),
    (study, {"study": SECRET}),
    (evaluate, {"upsampler": SECRET}),
    (evaluate, {"checkpoints": [SECRET]}),
    (evaluate, {"checkpoints": ["/data/x", SECRET]}),
    (evaluate, {"checkpoints": SECRET}),
    (evaluate, {"upsampler": 3, "checkpoints": [SECRET]}),
    (full_train, {"config": "demo", "start_from": "nowhere", "overrides": {SECRET: 3}}),
]


@pytest.mark.parametrize(("flow", "parameters"), CASES)
def test_credentials_are_refused(
    flow: Flow[..., Any], parameters: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    given = {**({"study": "guidance"} if flow is study else {}), **parameters}
    with (
        caplog.at_level(logging.DEBUG),
        pytest.raises(ConfigError, match=r"the parameter .* password or token") as caught,
    ):
        flow.validate_parameters(given)
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in caplog.text


def test_other_parameters_are_what_they_were() -> None:
    given = {"config": "demo", "overrides": {"seed": 3}, "checkpoints": ["/x", "s3://bucket/y"], "upsampler": None}
    assert evaluate.validate_parameters(given) == given
    described = evaluate.parameters.model_dump()["properties"]
    assert described["config"]["type"] == "string"
    assert described["config"]["minLength"] == 1
    assert {"type": "array", "items": {"type": "string"}} in described["checkpoints"]["anyOf"]
