"""COCO 2017 with the pixel maps of COCO-Stuff: labels 0 to 181 (things and stuff), 255 where unlabelled."""

from __future__ import annotations

from piti.config import CocoStuffSourceConfig, DataConfig
from piti.data.items import Split
from piti.data.sources.places import archive_forms, forms
from piti.data.sources.splits import Layout, SplitSource

_YEARS: dict[Split, str] = {"train": "train2017", "validation": "val2017"}
_MAPS = "stuffthingmaps"
_PACKED_MAPS = "stuffthingmaps_trainval2017"  # the name of the archive, whose folders are train2017 and val2017


def _labels(year: str) -> list[str]:
    folders = [f"{folder}/{year}" for folder in (_MAPS, _PACKED_MAPS, "annotations")]
    archives = [f"{archive}/{year}" for name in (_PACKED_MAPS, _MAPS) for archive in archive_forms(name)]
    inner = [f"{archive}/{_MAPS}/{year}" for name in (_PACKED_MAPS, _MAPS) for archive in archive_forms(name)]
    return [*folders, *archives, *inner]


LAYOUT = Layout(
    name="COCO-Stuff",
    images={split: [*forms(year), f"images/{year}", *forms(f"images/{year}")[1:]] for split, year in _YEARS.items()},
    labels={split: _labels(year) for split, year in _YEARS.items()},
    num_classes=182,
    expected="train2017/ and val2017/ (or train2017.zip, val2017.zip) and stuffthingmaps/train2017, "
    "stuffthingmaps/val2017 (or stuffthingmaps_trainval2017.zip)",
)


def coco_stuff_source(config: CocoStuffSourceConfig, data: DataConfig) -> SplitSource:
    """The source that a config describes."""
    return SplitSource(config.root, LAYOUT, data)
