"""Any folder of pictures, with or without a folder of conditions beside it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class PairedSourceConfig(BaseModel):
    """`images` and `conditions` are folders whose files pair up by relative path without its suffix.

    Without `conditions`, sketches are detected in the pictures. Without `validation_images`, a share of the pictures
    (drawn by key) becomes the validation split.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["paired"] = "paired"
    images: str
    conditions: str | None = None
    validation_images: str | None = None
    validation_conditions: str | None = None
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.05
