"""A run follows its job first, and shows it where Prefect answers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES
from ray.job_submission import JobStatus

from flows import steps
from piti.config.presets import load_config
from piti.plan import Plan


def test_a_prefect_server_that_is_away_delays_no_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that retries would keep the run from renewing its lease for minutes, and the job would end."""
    done: list[str] = []

    class Job:
        def follow(self, log: Any, on_poll: Callable[[], None], who: str, seen: int) -> JobStatus:
            done.append("followed")
            on_poll()
            return JobStatus.SUCCEEDED

        def progress(self) -> dict[str, Any]:
            return {"done": 1, "total": 2, "message": ""}

    def away(**_: Any) -> None:
        assert PREFECT_CLIENT_MAX_RETRIES.value() == 0
        done.append("asked")
        raise httpx.ConnectError("away")

    monkeypatch.setattr(steps, "create_progress_artifact", away)
    monkeypatch.setattr(steps, "get_run_logger", lambda: logging.getLogger("test"))
    monkeypatch.setattr(steps, "_wait_for_prefect", lambda: None)
    plan, job = Plan(load_config("demo", {"root": str(tmp_path)})), Job()
    status = steps._follow(job, plan.shard, plan.config, "a", 0, None)  # type: ignore[arg-type]
    assert status == JobStatus.SUCCEEDED
    assert done == ["followed", "asked", "asked"]
