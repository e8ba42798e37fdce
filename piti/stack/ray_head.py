"""What `ray start` has no option for (it calls one of these through RAY_START_HOOK)."""

from __future__ import annotations

import os
import sys
from typing import Any


def without_ray_client(parameters: Any, head: bool) -> None:
    """Leave out the Ray Client server: everything here goes through the Jobs API, so it is one open port less."""
    guarded(parameters, head)
    parameters.ray_client_server_port = None


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
