"""Settings of this machine, from environment variables that begin with PITI_ (never part of a run's fingerprint).

| variable                    | default                  | meaning                                                     |
|-----------------------------|--------------------------|-------------------------------------------------------------|
| PITI_HOME                   | see `default_home`       | where the local stack keeps its database, logs and pids     |
| PITI_RAY_JOBS_URL           | http://127.0.0.1:8265    | the Ray cluster's dashboard, whose Jobs API runs the jobs   |
| PITI_RAY_TOKEN_FILE         | `<PITI_HOME>/ray-token`  | the token that `piti up` makes and the cluster asks for     |
| PITI_REPORTS_URL            | none                     | where the local stack serves reports over HTTP              |
| PITI_PREFECT_AUTH_FILE      | `<PITI_HOME>/prefect-auth` | user:password that `piti up` makes and the server asks for |
| PITI_CACHE                  | see `piti.data.cache`    | copies of remote tars, unpacked archives                    |
| PITI_CACHE_BYTES            | 20 GiB                   | how much the copies of tars may take; one is always kept    |
| PITI_CONFIG_VARIABLES       | none                     | further variables that configs may use, separated by commas |
| PITI_CONFIG_FOLDERS         | the working folder       | where configs of runs may lie, besides PITI_ROOT: folders and remote prefixes, separated by colons |
| PITI_RAY_PATIENCE_SECONDS   | 300                      | how long a silent cluster is waited for before giving up    |
| PITI_JOB_PYTHON             | this interpreter         | the Python that jobs run in (in an image: the image's)      |
| PITI_JOB_STOP_SECONDS       | 60                       | what a stopped job gets to leave in order before SIGKILL    |
| PITI_OBJECT_STORE_MEGABYTES | 512                      | shared memory of the local Ray head                         |
| PITI_START_TIMEOUT_SECONDS  | 180                      | how long `piti up` waits for a server to answer             |
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import platformdirs
from pydantic import AfterValidator, Field, ValidationError
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

from piti.credentials import holds_credentials
from piti.errors import ConfigError

PROJECT = Path(__file__).resolve().parent.parent

LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"

# Variables that every config may use; PITI_CONFIG_VARIABLES adds names.
CONFIG_VARIABLES = ("PITI_ROOT", "PITI_DATA", "PITI_WEIGHTS", "PITI_CACHE")

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
LocalPath = Annotated[Path, AfterValidator(lambda path: path.expanduser())]


def _without_credentials(url: str) -> str:
    """`url`, which logs, errors and links show. Raises a validation error where it holds a password or a token."""
    if holds_credentials(url):
        raise PydanticCustomError(
            "credentials",
            "a user's password or token stands in it, which logs would show (Ray's token: PITI_RAY_TOKEN_FILE)",
        )
    return url


Address = Annotated[str, Field(pattern="^https?://"), AfterValidator(_without_credentials)]


def default_home() -> Path:
    """`.piti` in a checkout; elsewhere the user's state folder, or a temporary one for users without a home folder."""
    if (PROJECT / "pyproject.toml").is_file():
        return PROJECT / ".piti"
    state = platformdirs.user_state_path("piti")
    return state if state.is_absolute() else Path(tempfile.gettempdir()) / f"piti-{os.getuid()}"


class Settings(BaseSettings):
    """See the table above. `settings()` reads them and raises ConfigError for wrong values."""

    model_config = SettingsConfigDict(env_prefix="PITI_", extra="ignore", frozen=True, env_ignore_empty=True)

    home: LocalPath = Field(default_factory=default_home)
    ray_jobs_url: Address = "http://127.0.0.1:8265"
    ray_token_file: LocalPath | None = None
    reports_url: Address | None = None
    prefect_auth_file: LocalPath | None = None
    cache: LocalPath | None = None
    cache_bytes: Annotated[int, Field(ge=0)] = 20 << 30
    config_variables: str = ""
    config_folders: str = ""
    ray_patience_seconds: Seconds = 300.0
    job_python: str = sys.executable
    job_stop_seconds: Seconds = 60.0
    object_store_megabytes: Annotated[int, Field(ge=100)] = 512
    start_timeout_seconds: Seconds = 180.0

    @property
    def token_file(self) -> Path:
        """The file with the local cluster's token."""
        return (self.ray_token_file or self.home / "ray-token").absolute()

    @property
    def auth_file(self) -> Path:
        """The file with the Prefect server's `user:password`."""
        return (self.prefect_auth_file or self.home / "prefect-auth").absolute()

    def usable_variables(self) -> tuple[str, ...]:
        """Names of the environment variables that a config may use."""
        return (*CONFIG_VARIABLES, *(name.strip() for name in self.config_variables.split(",") if name.strip()))

    def allowed_folders(self) -> list[str]:
        """Local folders and remote prefixes whose files a run's parameter `config` may name.

        PITI_ROOT is one: reports keep their configs there, and give them to the command that repeats a report.
        """
        local = self.config_folders.replace("://", "\0").split(os.pathsep)
        folders = [folder.replace("\0", "://") for folder in local if folder] or [str(Path.cwd())]
        root = os.environ.get("PITI_ROOT")
        return [*folders, root] if root else folders

    def job_environment(self) -> dict[str, str]:
        """Environment variables of every job: unbuffered logs, time to stop in order, large memory pages.

        THP_MEM_ALLOC_ENABLE is torch's variable for large pages: with pages of 4 kB, allocating activations takes a
        tenth to a fifth of a network's time on a CPU. A value in the environment wins.
        """
        return {
            "PYTHONUNBUFFERED": "1",
            LARGE_PAGES: os.environ.get(LARGE_PAGES, "1"),
            "RAY_JOB_STOP_SIGNAL": "SIGTERM",
            "RAY_JOB_STOP_WAIT_TIME_S": f"{self.job_stop_seconds:g}",
        }


def settings() -> Settings:
    """The settings as the environment has them now. Raises ConfigError that names every wrong variable."""
    try:
        return Settings()
    except ValidationError as error:
        wrong = [
            f"PITI_{str(each['loc'][0]).upper()}{_quoted(each['input'])}: {each['msg']}" for each in error.errors()
        ]
        # Without its cause, whose text repeats the values.
        raise ConfigError("; ".join(wrong), "correct the environment variable, or unset it") from None
    except RuntimeError as error:  # `~` of a user without a home folder
        raise ConfigError(f"a PITI_ variable cannot be read: {error}", "write the path without ~") from error


def _quoted(value: object) -> str:
    """` is 'value'`; empty where that might show a password."""
    return "" if "@" in str(value) or holds_credentials(str(value)) else f" is {value!r}"
