"""Automations that the project keeps in the Prefect server: made where they are missing, brought up to date where they
are of an older version, and switched off for good where a person switched them off.
"""

from __future__ import annotations

from typing import Any

from prefect.automations import Automation


async def ensure(rule: Automation) -> None:
    """Have the server keep `rule`, which is known by its name.

    One that is the same is left alone: an update would make the server forget what it waits for, the heartbeats of a
    serving process that was killed a moment ago for example.
    """
    try:
        found = await Automation.aread(name=rule.name)
    except ValueError:  # there is none of that name
        await rule.acreate()
        return
    if _content(found) != _content(rule):
        rule.id, rule.enabled = found.id, found.enabled
        await rule.aupdate()


def _content(rule: Automation) -> dict[str, Any]:
    """What the rule says, without the ids that the server gives, and without what a person may set."""
    return {
        "description": rule.description,
        "trigger": rule.trigger.model_dump(exclude={"id"}),
        "actions": [action.model_dump(exclude={"id"}) for action in rule.actions],
    }
