"""prefect.yaml has the same deployments as the serving process, in a form that Prefect accepts."""

from __future__ import annotations

import importlib
from typing import Any

import yaml
from prefect.cli.deploy._models import PrefectYamlModel

from flows import serve
from piti.settings import PROJECT
from piti.stack.services import DEPLOYMENTS

FILE: dict[str, Any] = yaml.safe_load((PROJECT / "prefect.yaml").read_text())


def test_prefect_accepts_the_file() -> None:
    assert len(PrefectYamlModel.model_validate(FILE).deployments) == 5


def test_it_offers_what_the_serving_process_offers() -> None:
    served = {deployment.name: deployment for deployment in serve.deployments()}
    assert set(served) == {entry["name"] for entry in FILE["deployments"]} == DEPLOYMENTS
    for entry in FILE["deployments"]:
        path, function = entry["entrypoint"].split(":")
        flow = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), function)
        assert flow.name == FILE["name"] == "piti"
        assert entry["tags"] == served[entry["name"]].tags
        assert served[entry["name"]].flow_name == flow.name
        assert set(served[entry["name"]]._parameter_openapi_schema.properties) == set(flow.parameters.properties)
