"""A trial job that does nothing, submitted like every job, to prove that the stack works."""

from __future__ import annotations

import shlex
import time
import uuid
from contextlib import suppress
from http import HTTPStatus
from typing import Any
from urllib.error import HTTPError

from piti.errors import StackError
from piti.settings import Settings
from piti.stack.http import POLL_SECONDS, request_json

_ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})


def run_trial_job(settings: Settings, ray_url: str, token: str | None) -> None:
    """Have Ray run PITI_JOB_PYTHON, which imports this project, and forget the job. Raises StackError if it fails."""
    jobs = f"{ray_url}/api/jobs"
    body = {
        "entrypoint": shlex.join([settings.job_python, "-c", "import piti.settings"]),
        "runtime_env": {"env_vars": settings.job_environment()},
    }
    deadline = time.monotonic() + settings.start_timeout_seconds
    try:
        submission = _submit(jobs, token, body, deadline)
        status = _followed(f"{jobs}/{submission}", token, deadline)
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


def _submit(jobs: str, token: str | None, body: dict[str, Any], deadline: float) -> str:
    """The new job's id. On a busy machine Ray fails (500) until its agent runs, which is waited for; OSError after that."""
    while True:
        submission = f"piti-up-{uuid.uuid4().hex[:12]}"
        try:
            request_json(f"{jobs}/", token, {**body, "submission_id": submission}, timeout_seconds=60)
            return submission
        except HTTPError as error:
            if error.code < HTTPStatus.INTERNAL_SERVER_ERROR or time.monotonic() > deadline:
                raise
        time.sleep(POLL_SECONDS)


def _followed(job: str, token: str | None, deadline: float) -> str:
    """The job's status once it has ended, or at the deadline. Until then Ray may be slow to answer, or fail; then OSError."""
    status = "PENDING"
    while status not in _ENDED and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        try:
            status = str(request_json(job, token)["status"])
        except OSError as error:
            final = isinstance(error, HTTPError) and error.code < HTTPStatus.INTERNAL_SERVER_ERROR
            if final or time.monotonic() > deadline:
                raise
    return status
