"""Datasets as they are distributed, one file each."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from piti.data.sources.bundled import BundledSourceConfig
from piti.data.sources.paired import PairedSourceConfig

SourceConfig = Annotated[BundledSourceConfig | PairedSourceConfig, Field(discriminator="kind")]
