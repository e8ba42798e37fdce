"""What `ray start` has no option for (it calls one of these through RAY_START_HOOK)."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil


def for_one_machine(parameters: Any, head: bool) -> None:
    """Leave out the Ray Client server: everything here goes through the Jobs API, so it is one open port less.

    And wait for the node as long as `piti up` does: Ray gives up after 30 s, which a busy machine takes.
    """
    from ray._private import services

    from piti.settings import settings

    guarded(parameters, head)
    parameters.ray_client_server_port = None
    services.get_node = patient(services.get_node, settings().start_timeout_seconds)


def patient(get_node: Callable[..., Any], patience_seconds: float) -> Callable[..., Any]:
    """`get_node`, asked again until it knows the node, the node has died, or the time is over. Then raises its last RuntimeError."""

    def asked_again(*arguments: Any) -> Any:
        deadline = time.monotonic() + patience_seconds
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:
                if time.monotonic() > deadline or node_died():
                    raise
                time.sleep(0.5)

    return asked_again


def node_died() -> bool:
    """Whether the raylet that this process started has ended: it does where its agents take more than 15 s to start."""
    children = psutil.Process().children()
    return any(child.name() == "raylet" and child.status() == psutil.STATUS_ZOMBIE for child in children)


def guarded(parameters: Any, head: bool) -> None:
    """End the start of a head whose dashboard others reach without a token: its Jobs API runs what it is given."""
    from piti.stack.environment import is_loopback

    host = str(parameters.dashboard_host or "127.0.0.1")
    if head and not is_loopback(host) and os.environ.get("RAY_AUTH_MODE") != "token":
        print(
            f"piti: a Ray dashboard on {host} without a token lets everybody run code here - "
            "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (docs/security.md)",
            file=sys.stderr,
        )
        raise SystemExit(1)
