"""Emits Prefect events for finished checkpoints, by which Prefect starts evaluations if the config asks for them.

The trigger is Prefect's own: flows/serve.py and prefect.yaml register it with the deployment piti/evaluate.
"""

from __future__ import annotations

import logging
from typing import Any

from prefect.events import DeploymentEventTrigger, emit_event

from flows.parameters import Overrides
from piti import storage
from piti.checkpoints import checkpoints_of
from piti.errors import PitiError
from piti.evaluation.evaluation_plan import EvaluationPlan
from piti.evaluation.targets import make_target
from piti.plan import Plan

logger = logging.getLogger("piti")

EVENT = "piti.checkpoint.finished"
TRIGGER = "piti: evaluate finished checkpoints"
# What the evaluation's run gets, from the event's payload.
PARAMETERS: dict[str, Any] = {
    "config": "{{ event.payload.config }}",
    "overrides": {
        "__prefect_kind": "json",
        "value": {"__prefect_kind": "jinja", "template": "{{ event.payload.overrides | tojson }}"},
    },
    "checkpoints": ["{{ event.payload.checkpoint }}"],
}


def evaluation_trigger() -> DeploymentEventTrigger:
    """Runs a deployment for each checkpoint that its config wants to be evaluated."""
    return DeploymentEventTrigger(
        name=TRIGGER,
        description="Evaluates checkpoints as evaluation.on_checkpoint of their config says.",
        match={"prefect.resource.id": "piti.checkpoint.*", "piti.evaluate": "yes"},
        expect={EVENT},
        parameters=PARAMETERS,
    )


class Announcer:
    """Emits an event for each checkpoint of stage 2 that a training finishes.

    `config` and `overrides` are the training run's own parameters. A checkpoint is to be evaluated as
    `evaluation.on_checkpoint` says, once there is an upsampler for it, and unless it has its report.
    """

    def __init__(self, plan: Plan, config: str, overrides: Overrides) -> None:
        self._plan = plan
        self._told = {"config": config, "overrides": overrides or {}}
        self._wanted = plan.config.evaluation.on_checkpoint
        self._known = set(checkpoints_of(plan.stage2.output))
        self._evaluated: set[str] = set()

    def look(self) -> None:
        """Announce what was finished since the last look, while training goes on."""
        for uri in checkpoints_of(self._plan.stage2.output):
            if uri not in self._known:
                self._known.add(uri)
                self._emit(uri, self._wanted == "every" and self._can_be_evaluated(uri))

    def finish(self) -> None:
        """Both networks are trained: have those evaluated that are still to be, the last one or all that are there.

        All include those that a run finished whose process died before it could say so.
        """
        self.look()
        there = checkpoints_of(self._plan.stage2.output)
        wanted = {"none": [], "final": there[-1:], "every": there}
        for uri in wanted[self._wanted]:
            if uri not in self._evaluated and self._can_be_evaluated(uri):
                self._emit(uri, evaluates=True)

    def _can_be_evaluated(self, uri: str) -> bool:
        try:
            return EvaluationPlan(self._plan, make_target(self._plan, uri)).report.result() is None
        except PitiError as error:
            logger.info("%s is not evaluated yet: %s", uri, error)
            return False

    def _emit(self, uri: str, evaluates: bool) -> None:
        if evaluates:
            self._evaluated.add(uri)
        run, _, step = uri.rpartition("/")
        emit_event(
            EVENT,
            resource={
                "prefect.resource.id": f"piti.checkpoint.{storage.name(run)}.{step}",
                "prefect.resource.name": f"{step} of {self._plan.config.name}",
                "piti.evaluate": "yes" if evaluates else "no",
            },
            payload={**self._told, "checkpoint": uri},
        )
