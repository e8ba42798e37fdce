"""Settings of this machine, from environment variables that begin with PITI_ (never part of a run's fingerprint).

| variable                    | default                  | meaning                                                     |
|-----------------------------|--------------------------|-------------------------------------------------------------|
| PITI_HOME                   | `<checkout>/.piti`       | where the local stack keeps its database, logs and pids     |
| PITI_RAY_JOBS_URL           | http://127.0.0.1:8265    | the Ray cluster's dashboard, whose Jobs API runs the jobs   |
| PITI_RAY_TOKEN_FILE         | `<PITI_HOME>/ray-token`  | the token that `piti up` makes and the cluster asks for     |
| PITI_RAY_PATIENCE_SECONDS   | 60                       | how long a silent cluster is waited for before giving up    |
| PITI_JOB_PYTHON             | this interpreter         | the Python that jobs run in (in an image: the image's)      |
| PITI_JOB_STOP_SECONDS       | 20                       | what a stopped job gets to leave in order before SIGKILL    |
| PITI_OBJECT_STORE_MEGABYTES | 512                      | shared memory of the local Ray head                         |
| PITI_START_TIMEOUT_SECONDS  | 180                      | how long `piti up` waits for a server to answer             |
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

PROJECT = Path(__file__).resolve().parent.parent

LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"

Seconds = Annotated[float, Field(gt=0)]


class Settings(BaseSettings):
    """See the table above. Raises pydantic's ValidationError for a value of the wrong type."""

    model_config = SettingsConfigDict(env_prefix="PITI_", extra="ignore", frozen=True)

    home: Path = PROJECT / ".piti"
    ray_jobs_url: str = "http://127.0.0.1:8265"
    ray_token_file: Path | None = None
    ray_patience_seconds: Seconds = 60.0
    job_python: str = sys.executable
    job_stop_seconds: Seconds = 20.0
    object_store_megabytes: Annotated[int, Field(ge=100)] = 512
    start_timeout_seconds: Seconds = 180.0

    @property
    def token_file(self) -> Path:
        """Where the local cluster's token lies."""
        return (self.ray_token_file or self.home / "ray-token").absolute()

    def job_environment(self) -> dict[str, str]:
        """Environment variables that every job gets: unbuffered logs, time to leave in order, large memory pages.

        torch's name for the latter: without it Linux hands every activation of a network on a CPU to it anew in
        pages of 4 kB, which takes a tenth to a fifth of its time (docs/performance.md). One's own setting wins.
        """
        return {
            "PYTHONUNBUFFERED": "1",
            LARGE_PAGES: os.environ.get(LARGE_PAGES, "1"),
            "RAY_JOB_STOP_SIGNAL": "SIGTERM",
            "RAY_JOB_STOP_WAIT_TIME_S": f"{self.job_stop_seconds:g}",
        }


def settings() -> Settings:
    """The settings as the environment has them now."""
    return Settings()
