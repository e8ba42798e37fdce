"""Datasets with a fixed training and validation split: photographs in one folder, label maps of the same names in
another. Which folders is what `ade20k.py` and `coco_stuff.py` say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from piti.config import DataConfig
from piti.data.items import SPLITS, Item, Split
from piti.data.sources.entries import Entry, alike, stem
from piti.data.sources.files import (
    FileItem,
    Reading,
    TreeFile,
    best_condition,
    joint_identity,
    joint_size,
    listing_fingerprint,
    pictures_among,
)
from piti.data.sources.keys import safe_key
from piti.data.sources.places import find_place
from piti.data.sources.trees import open_tree
from piti.errors import DataError, PitiError

_FORMAT_VERSION = 3


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


class SplitSource:
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

    def fingerprint(self) -> str:
        places = [place for split in SPLITS for place in (self._images(split), self._labels(split))]
        return listing_fingerprint(_FORMAT_VERSION, [place for place in places if place is not None])

    def problems(self) -> list[PitiError]:
        layout, data = self._layout, self._data
        problems: list[PitiError] = []
        if data.modality == "geometry":
            problem = f"{layout.name} has no depth, which modality geometry needs"
            problems.append(DataError(problem, "use modality mask or sketch"))
        if self._uses_labels and (data.num_classes or 0) < layout.num_classes:
            problem = f"data.num_classes is {data.num_classes}, {layout.name} has labels 0 to {layout.num_classes - 1}"
            problems.append(DataError(problem, f"set data.num_classes to {layout.num_classes}"))
        for split in SPLITS:
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
                yield FileItem(key, label_map.path, label_map.identity, self._reading, None, fault=fault)

    def _item(self, split: Split, images: str, entry: Entry, labels: str | None, label_map: Entry | None) -> FileItem:
        """The label map belongs to the first picture of its name."""
        fault = None if labels is None or label_map else f"no label map {stem(entry.path)}.* in {labels}"
        return FileItem(
            safe_key(entry.path, split), entry.path, joint_identity(entry, label_map), self._reading,
            TreeFile(images, entry.path),
            None if labels is None or label_map is None else TreeFile(labels, label_map.path), fault=fault,
            size_bytes=joint_size(entry, label_map),
        )  # fmt: skip
