"""Registers the five deployments and runs their flow runs: `python -m flows.serve`."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from typing import Any
from uuid import UUID

from prefect import Flow, serve
from prefect.automations import Automation
from prefect.client.orchestration import PrefectClient
from prefect.deployments.runner import RunnerDeployment
from prefect.types.entrypoint import EntrypointType

from flows.announcements import evaluation_trigger
from flows.automations import ensure
from flows.cancellation import stop_unwanted_jobs
from flows.crashed_runs import ensure_crashed_runs_are_marked
from flows.evaluate import evaluate
from flows.full_train import full_train
from flows.prepare import prepare
from flows.study import study
from flows.train import train
from piti.errors import PitiError
from piti.settings import settings
from piti.stack import wait_until_prefect_answers

TAGS = ["piti"]
# What a person sets in the UI. Prefect's registration changes only the fields that a deployment has set.
_A_PERSONS = ("parameters", "paused", "schedules", "concurrency_limit", "concurrency_options", "tags")
# Each run is a process of some 400 MB, one that waits for its turn too (flows/turns.py): these must not hold up evaluations.
MOST_RUNS = 12
# Of Prefect's client, for flow runs: a server that is away is asked again after 2, 4, ... 512 seconds.
PATIENCE = {"PREFECT_CLIENT_MAX_RETRIES": "9"}


class Registered(RunnerDeployment):
    """A deployment whose registration changes only what the project owns."""

    async def _create_triggers(self, deployment_id: UUID, client: PrefectClient) -> None:
        """Prefect would delete every trigger of the deployment, whoever made it, and make these anew, switched on."""
        for trigger in self.triggers:
            trigger.set_deployment_id(deployment_id)
            await ensure(Automation(**trigger.as_automation().model_dump()))


def deployments() -> list[RunnerDeployment]:
    """full-train, prepare, train, evaluate and study, all of a flow named `piti`; evaluate with its trigger."""
    flows: dict[str, Flow[..., Any]] = {
        "full-train": full_train,
        "prepare": prepare,
        "train": train,
        "evaluate": evaluate,
        "study": study,
    }
    registered = [
        Registered.from_flow(
            flow,
            name=name,
            tags=TAGS,
            description=(flow.description or "").strip(),
            triggers=[evaluation_trigger()] if name == "evaluate" else [],
            entrypoint_type=EntrypointType.MODULE_PATH,  # found wherever this is installed, from any working folder
        )
        for name, flow in flows.items()
    ]
    for deployment in registered:
        deployment.model_fields_set.difference_update(_A_PERSONS)
    return registered


def _own_temporary_folder() -> str:
    """For what Prefect keeps in `<temporary folder>/runner_storage`, where nobody but its first user may write."""
    folder = settings().home / "serve"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return str(folder)


def main() -> None:
    """Serve until interrupted."""
    wait_until_prefect_answers()  # `piti up` starts this beside the server
    asyncio.run(ensure_crashed_runs_are_marked())
    try:
        stop_unwanted_jobs()
    except PitiError as error:  # `piti up` starts Ray beside this, too: then there are no jobs yet
        logging.getLogger("piti").info("no jobs to look after: %s", error)
    tempfile.tempdir = _own_temporary_folder()
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    serve(*deployments(), pause_on_shutdown=False, limit=MOST_RUNS, print_starting_message=True)


if __name__ == "__main__":
    main()
