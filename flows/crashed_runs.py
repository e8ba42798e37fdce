"""A flow run whose process was killed cannot say so; the server notices that its heartbeats stopped.

Without this rule such a run would stay Running in the UI for ever. The rule is an automation in the Prefect server,
so it works while nothing serves the deployments.
"""

from __future__ import annotations

from datetime import timedelta

from prefect.automations import Automation
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.settings import get_current_settings

from flows.automations import ensure

NAME = "piti: runs without a heartbeat have crashed"
MISSED_HEARTBEATS = 3
_FINAL_STATES = ("Completed", "Failed", "Cancelled", "Crashed")


async def ensure_crashed_runs_are_marked() -> None:
    """Have the Prefect server keep the rule."""
    await ensure(_rule())


def _rule() -> Automation:
    # Once a run has sent a heartbeat, another one, or its end, has to follow. A cancelled run's process is ended
    # by the one that serves it: where that is gone too, the run ends here.
    heartbeat_seconds = get_current_settings().flows.heartbeat_frequency or 0
    return Automation(
        name=NAME,
        description="Marks flow runs whose process is gone as Crashed. Kept up to date by `python -m flows.serve`.",
        trigger=EventTrigger(
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            match_related={"prefect.resource.role": "flow", "prefect.resource.name": "piti"},
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{state}" for state in _FINAL_STATES)},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=MISSED_HEARTBEATS * heartbeat_seconds),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message="its process is gone: no sign of life for "
                f"{MISSED_HEARTBEATS * heartbeat_seconds} s. Run it again: it continues where it was.",
            )
        ],
    )
