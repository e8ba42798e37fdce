"""The proof that the stack works: a job that does nothing, on the way that every job goes."""

from __future__ import annotations

import shlex
import time
import urllib.error
import uuid
from contextlib import suppress
from typing import Any

from piti.errors import StackError
from piti.settings import Settings
from piti.stack.http import POLL_SECONDS, request_json

_ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})


def run_trial_job(settings: Settings, ray_url: str, token: str | None) -> None:
    """Have Ray run PITI_JOB_PYTHON, which imports this project, and forget the job. Raises StackError if it fails."""
    jobs = f"{ray_url}/api/jobs"
    submission = f"piti-up-{uuid.uuid4().hex[:12]}"
    body = {
        "submission_id": submission,
        "entrypoint": shlex.join([settings.job_python, "-c", "import piti.settings"]),
        "runtime_env": {"env_vars": settings.job_environment()},
    }
    deadline = time.monotonic() + settings.start_timeout_seconds
    try:
        _submit(jobs, token, body, deadline)
        status = "PENDING"
        while status not in _ENDED and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            status = str(request_json(f"{jobs}/{submission}", token)["status"])
        if status == "SUCCEEDED":
            with suppress(OSError):  # a job that stays in Ray's list harms nobody
                request_json(f"{jobs}/{submission}", token, method="DELETE")
            return
        lines = str(request_json(f"{jobs}/{submission}/logs", token)["logs"]).strip().splitlines()
    except (OSError, KeyError, TypeError) as error:
        raise StackError(f"Ray takes no jobs: {error}", "see Ray's logs, then `piti down` and `piti up`") from error
    if status not in _ENDED:
        raise StackError(
            f"a trial job did not end within {settings.start_timeout_seconds:.0f} s ({status.lower()})",
            "see Ray's dashboard; PITI_START_TIMEOUT_SECONDS waits longer",
        )
    reason = lines[-1].strip() if lines else "it wrote nothing"
    raise StackError(
        f"a trial job of {settings.job_python} failed: {reason}", "does PITI_JOB_PYTHON have this project?"
    )


def _submit(jobs: str, token: str | None, body: dict[str, Any], deadline: float) -> None:
    """Hand the job over. On a busy machine Ray's dashboard answers some time before it can take jobs. Raises OSError."""
    while True:
        try:
            request_json(f"{jobs}/", token, body, timeout_seconds=60)
            return
        except urllib.error.HTTPError as error:
            if error.code < 500 or time.monotonic() > deadline:
                raise
        with suppress(OSError):
            request_json(f"{jobs}/{body['submission_id']}", token)
            return  # it was taken after all
        time.sleep(POLL_SECONDS)
