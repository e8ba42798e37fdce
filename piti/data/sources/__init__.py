"""Datasets as they are distributed, one file each. Importing this imports neither numpy nor torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from piti.data.sources.ade20k import Ade20kSourceConfig, ade20k_source
from piti.data.sources.base import SPLITS, FilteredItem, Item, LoadedItem, RawCondition, RejectedItem, Source, Split
from piti.data.sources.bundled import BundledSource, BundledSourceConfig
from piti.data.sources.coco_stuff import CocoStuffSourceConfig, coco_stuff_source
from piti.data.sources.diode import DiodeSource, DiodeSourceConfig
from piti.data.sources.listing import ListSource, ListSourceConfig
from piti.data.sources.paired import PairedSource, PairedSourceConfig
from piti.data.sources.webdataset import WebdatasetSource, WebdatasetSourceConfig

if TYPE_CHECKING:
    from piti.config import DataConfig

SourceConfig = Annotated[
    BundledSourceConfig
    | PairedSourceConfig
    | ListSourceConfig
    | WebdatasetSourceConfig
    | Ade20kSourceConfig
    | CocoStuffSourceConfig
    | DiodeSourceConfig,
    Field(discriminator="kind"),
]

__all__ = [
    "SPLITS", "Ade20kSourceConfig", "BundledSourceConfig", "CocoStuffSourceConfig", "DiodeSourceConfig", "FilteredItem", "Item",
    "ListSourceConfig", "LoadedItem", "PairedSourceConfig", "RawCondition", "RejectedItem", "Source", "SourceConfig",
    "Split", "WebdatasetSourceConfig", "open_source",
]  # fmt: skip


def open_source(data: DataConfig) -> Source:
    """The source that `data` describes. Nothing is read yet."""
    match data.source:
        case BundledSourceConfig() as config:
            return BundledSource(config, data)
        case PairedSourceConfig() as config:
            return PairedSource(config, data)
        case ListSourceConfig() as config:
            return ListSource(config, data)
        case WebdatasetSourceConfig() as config:
            return WebdatasetSource(config, data)
        case Ade20kSourceConfig() as config:
            return ade20k_source(config, data)
        case CocoStuffSourceConfig() as config:
            return coco_stuff_source(config, data)
        case DiodeSourceConfig() as config:
            return DiodeSource(config, data)
