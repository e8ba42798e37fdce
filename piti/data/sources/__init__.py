"""Datasets as they are distributed, one file each. Importing this imports neither numpy nor torch."""

from __future__ import annotations

from piti.config import (
    Ade20kSourceConfig,
    BundledSourceConfig,
    CocoStuffSourceConfig,
    DataConfig,
    DiodeSourceConfig,
    ListSourceConfig,
    PairedSourceConfig,
    WebdatasetSourceConfig,
)
from piti.data.items import SPLITS, FilteredItem, Item, LoadedItem, RawCondition, RejectedItem, Source, Split
from piti.data.sources.ade20k import ade20k_source
from piti.data.sources.bundled import BundledSource
from piti.data.sources.coco_stuff import coco_stuff_source
from piti.data.sources.diode import DiodeSource
from piti.data.sources.listing import ListSource
from piti.data.sources.paired import PairedSource
from piti.data.sources.webdataset import WebdatasetSource

__all__ = [
    "SPLITS",
    "FilteredItem",
    "Item",
    "LoadedItem",
    "RawCondition",
    "RejectedItem",
    "Source",
    "Split",
    "open_source",
]


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
