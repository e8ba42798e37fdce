"""What `ray start` has no option for (it calls this through RAY_START_HOOK)."""

from __future__ import annotations

from typing import Any


def without_ray_client(parameters: Any, head: bool) -> None:
    """Leave out the Ray Client server: everything here goes through the Jobs API, so it is one open port less."""
    del head
    parameters.ray_client_server_port = None
