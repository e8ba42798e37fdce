"""Base classes and types of all sections of the config."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from piti import storage

REMOTE_SCHEMES = ("s3", "gs", "gcs", "az", "abfs", "memory")

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """A section of the config: immutable, without unknown keys, with finite numbers only."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class WeightsRef(Section):
    """A weights file that a person downloads once. `sha256`, if given, is compared with the file's."""

    path: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: str) -> str:
        require_known_scheme(path)
        return storage.absolute(path)  # jobs run in another working directory


class ProgramRef(WeightsRef):
    """A network stored with its code. `sha256` is required, because opening another file would run unknown code."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def require_known_scheme(uri: str) -> None:
    """Raise ValueError for an address that is neither a local path nor in one of the supported object stores."""
    if not storage.is_local(uri) and (uri.partition("://")[0] not in REMOTE_SCHEMES or "::" in uri):
        raise ValueError(
            f"only local paths and {', '.join(f'{scheme}://' for scheme in REMOTE_SCHEMES[:-1])} are supported"
        )
