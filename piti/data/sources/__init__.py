"""Datasets as they are distributed, one file each. Importing this imports neither numpy nor torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from piti.data.sources.base import SPLITS, Item, LoadedItem, RawCondition, RejectedItem, Source, Split
from piti.data.sources.bundled import BundledSource, BundledSourceConfig
from piti.data.sources.paired import PairedSource, PairedSourceConfig

if TYPE_CHECKING:
    from piti.config import DataConfig

SourceConfig = Annotated[BundledSourceConfig | PairedSourceConfig, Field(discriminator="kind")]

__all__ = [
    "SPLITS", "BundledSourceConfig", "Item", "LoadedItem", "PairedSourceConfig", "RawCondition", "RejectedItem",
    "Source", "SourceConfig", "Split", "open_source",
]  # fmt: skip


def open_source(data: DataConfig) -> Source:
    """The source that `data` describes. Nothing is read yet."""
    config = data.source
    if isinstance(config, PairedSourceConfig):
        return PairedSource(config, data)
    return BundledSource(config, data)
