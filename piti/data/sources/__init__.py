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
from piti.data.items import Source
from piti.data.sources.bundled import BundledSource
from piti.data.sources.diode import DiodeSource
from piti.data.sources.labelled import ADE20K, COCO_STUFF, LabelledSource
from piti.data.sources.paired import PairedSource
from piti.data.sources.table import ListSource
from piti.data.sources.webdataset import WebdatasetSource


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
            return LabelledSource(config.root, ADE20K, data)
        case CocoStuffSourceConfig() as config:
            return LabelledSource(config.root, COCO_STUFF, data)
        case DiodeSourceConfig() as config:
            return DiodeSource(config, data)
