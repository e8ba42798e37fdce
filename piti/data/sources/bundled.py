"""Photographs that come with scikit-image, cut into crops: real pictures without a download."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class BundledSourceConfig(BaseModel):
    """Numbers of crops to cut. Train and validation crops come from disjoint regions of each photograph."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["bundled"] = "bundled"
    train_crops: Annotated[int, Field(gt=0)] = 512
    validation_crops: Annotated[int, Field(gt=0)] = 64
