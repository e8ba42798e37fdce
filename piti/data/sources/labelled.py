"""Datasets with a fixed training and validation split: photographs in one folder, label maps of the same names in
another. ADE20K as distributed for scene parsing (ADEChallengeData2016): 150 classes, 0 for anything else. COCO 2017 with
the pixel maps of COCO-Stuff: labels 0 to 181 (things and stuff), 255 where unlabelled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from piti.config import DataConfig
from piti.data.items import SPLITS, Item, Split
from piti.data.sources.files import FileItem, Reading, TreeFile, best_condition, listing_fingerprint, pictures_among
from piti.data.sources.listing import Entry, alike
from piti.data.sources.names import safe_key, stem
from piti.data.sources.trees import archive_forms, find_place, forms, open_tree
from piti.errors import DataError, PitiError

_FORMAT_VERSION = 4


@dataclass(frozen=True)
class Layout:
    """How a dataset is laid out: for each split, the folders below the root in which its parts may lie (first wins).

    `num_classes`: one more than its largest label, 255 (unlabelled) aside. `expected` tells people the layout.
    """

    name: str
    images: Mapping[Split, Sequence[str]]
    labels: Mapping[Split, Sequence[str]]
    num_classes: int
    expected: str


_ADE = "ADEChallengeData2016"


def _ade_folders(part: str) -> dict[Split, list[str]]:
    bases = ["", f"{_ADE}/", *(f"{archive}/{_ADE}/" for archive in archive_forms(_ADE))]
    folders: dict[Split, str] = {"train": "training", "validation": "validation"}
    return {split: [f"{base}{part}/{folder}" for base in bases] for split, folder in folders.items()}


ADE20K = Layout(
    name="ADE20K",
    images=_ade_folders("images"),
    labels=_ade_folders("annotations"),
    num_classes=151,
    expected="images/training, images/validation, annotations/training and annotations/validation, "
    "directly, in ADEChallengeData2016/ or in ADEChallengeData2016.zip",
)

_COCO_YEARS: dict[Split, str] = {"train": "train2017", "validation": "val2017"}
_COCO_MAPS = "stuffthingmaps"
_COCO_PACKED_MAPS = "stuffthingmaps_trainval2017"  # the name of the archive, whose folders are train2017 and val2017


def _coco_labels(year: str) -> list[str]:
    folders = [f"{folder}/{year}" for folder in (_COCO_MAPS, _COCO_PACKED_MAPS, "annotations")]
    archives = [archive for name in (_COCO_PACKED_MAPS, _COCO_MAPS) for archive in archive_forms(name)]
    return [
        *folders,
        *(f"{archive}/{year}" for archive in archives),
        *(f"{archive}/{_COCO_MAPS}/{year}" for archive in archives),
    ]


COCO_STUFF = Layout(
    name="COCO-Stuff",
    images={
        split: [*forms(year), f"images/{year}", *forms(f"images/{year}")[1:]] for split, year in _COCO_YEARS.items()
    },
    labels={split: _coco_labels(year) for split, year in _COCO_YEARS.items()},
    num_classes=182,
    expected="train2017/ and val2017/ (or train2017.zip, val2017.zip) and stuffthingmaps/train2017, "
    "stuffthingmaps/val2017 (or stuffthingmaps_trainval2017.zip)",
)


class LabelledSource:
    """Photographs with label maps (modality mask), or the photographs alone (modality sketch)."""

    def __init__(self, root: str, layout: Layout, data: DataConfig) -> None:
        self._root, self._layout, self._data = root, layout, data
        self._reading = Reading.of(data)

    @property
    def _uses_labels(self) -> bool:
        return self._data.modality == "mask"

    def _images(self, split: Split) -> str | None:
        return find_place(self._root, self._layout.images[split])

    def _labels(self, split: Split) -> str | None:
        return find_place(self._root, self._layout.labels[split]) if self._uses_labels else None

    def fingerprint(self, splits: Sequence[Split] = SPLITS) -> str:
        places = (place for split in splits for place in (self._images(split), self._labels(split)))
        return listing_fingerprint(_FORMAT_VERSION, places)

    def problems(self, splits: Sequence[Split] = SPLITS) -> list[PitiError]:
        layout, data = self._layout, self._data
        problems: list[PitiError] = []
        if data.modality == "geometry":
            problem = f"{layout.name} has no depth, which modality geometry needs"
            problems.append(DataError(problem, "use modality mask or sketch"))
        if self._uses_labels and (data.num_classes or 0) < layout.num_classes:
            problem = f"data.num_classes is {data.num_classes}, {layout.name} has labels 0 to {layout.num_classes - 1}"
            problems.append(DataError(problem, f"set data.num_classes to {layout.num_classes}"))
        for split in splits:
            problems += self._missing(self._images(split), layout.images[split], f"{split} pictures")
            if self._uses_labels:
                problems += self._missing(self._labels(split), layout.labels[split], f"{split} label maps")
        return problems

    def _missing(self, place: str | None, candidates: Sequence[str], what: str) -> Iterator[PitiError]:
        if place is None:
            yield DataError(
                f"{self._layout.name}: no {what} at {self._root}/{candidates[0]}",
                f"data.source.root must hold {self._layout.expected}",
            )
        elif not any(pictures_among(open_tree(place).entries())):
            yield DataError(f"{self._layout.name}: {place} holds no pictures", "download and unpack it again")

    def items(self, split: Split) -> Iterator[Item]:
        """In the order of names. Raises DataError where a folder is missing."""
        images, labels = self._images(split), self._labels(split)
        if images is None or (self._uses_labels and labels is None):
            raise DataError(
                f"{self._layout.name}: there is no {split} split in {self._root}",
                f"data.source.root must hold {self._layout.expected}",
            )
        pictures, maps = open_tree(images).entries(), None if labels is None else open_tree(labels).entries()
        for _, (found, found_maps) in alike(pictures, maps):
            label_map, several = best_condition(found_maps), list(pictures_among(found))
            for number, entry in enumerate(several):
                yield self._item(split, images, entry, labels, label_map if number == 0 else None)
            if label_map is not None and not several:
                key, fault = safe_key(label_map.path, split, "labels"), "label map without a picture"
                yield FileItem.of(key, label_map.path, self._reading, [label_map], image=None, fault=fault)

    def _item(self, split: Split, images: str, entry: Entry, labels: str | None, label_map: Entry | None) -> FileItem:
        """The label map belongs to the first picture of its name."""
        fault = None if labels is None or label_map else f"no label map {stem(entry.path)}.* in {labels}"
        condition = None if labels is None or label_map is None else TreeFile(labels, label_map.path)
        return FileItem.of(
            safe_key(entry.path, split), entry.path, self._reading, [entry, label_map], fault=fault,
            image=TreeFile(images, entry.path), condition=condition,
        )  # fmt: skip
