"""Any folder of pictures, with or without a folder of conditions beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from piti.config import DataConfig, PairedSourceConfig
from piti.data.items import SPLITS, Item, Split
from piti.data.sources.files import (
    FileItem,
    Reading,
    TreeFile,
    best_condition,
    listing_fingerprint,
    pictures_among,
    usable_among,
)
from piti.data.sources.listing import Entry, Listing, alike
from piti.data.sources.names import draw_validation, safe_key
from piti.data.sources.trees import open_tree
from piti.errors import DataError, PitiError

_FORMAT_VERSION = 4


@dataclass(frozen=True)
class Folders:
    """The places that one split is read from."""

    images: str
    conditions: str | None
    normals: str | None
    place: tuple[str, ...]  # what tells its keys from those of the other split, where that is read from other folders


class PairedSource:
    """See PairedSourceConfig. Every picture file is an item; so is a condition without a picture (rejected)."""

    def __init__(self, config: PairedSourceConfig, data: DataConfig) -> None:
        self._config = config
        self._data = data
        self._reading = Reading.of(data, config.depth_unit_metres)

    def _folders(self, split: Split) -> Folders:
        config = self._config
        if split == "validation" and config.validation_images is not None:
            return Folders(config.validation_images, config.validation_conditions, config.validation_normals, (split,))
        return Folders(config.images, config.conditions, config.normals, (split,) if config.validation_images else ())

    def _all_folders(self, splits: Sequence[Split]) -> list[str]:
        folders = [self._folders(split) for split in SPLITS if split in splits]
        places = (place for found in folders for place in (found.images, found.conditions, found.normals))
        return [place for place in dict.fromkeys(places) if place is not None]

    def fingerprint(self, splits: Sequence[Split] = SPLITS) -> str:
        return listing_fingerprint(_FORMAT_VERSION, self._all_folders(splits))

    def problems(self, splits: Sequence[Split] = SPLITS) -> list[PitiError]:
        problems: list[PitiError] = []
        for place in self._all_folders(splits):
            try:
                if not any(usable_among(open_tree(place).entries())):
                    problems.append(DataError(f"{place} holds no pictures", "correct the path in data.source"))
            except PitiError as error:
                problems.append(error)
        if self._data.modality != "sketch" and self._config.conditions is None:
            problem = f"data.source has no conditions, which modality {self._data.modality} needs"
            problems.append(DataError(problem, "give data.source.conditions"))
        if self._data.modality != "geometry" and self._config.normals is not None:
            problem = f"data.source.normals does nothing with modality {self._data.modality}"
            problems.append(DataError(problem, "leave it out"))
        return problems

    def items(self, split: Split) -> Iterator[Item]:
        """In the order of names. Raises DataError where a folder does not exist."""
        folders = self._folders(split)
        images = open_tree(folders.images).entries()
        conditions, normals = (
            None if place is None else open_tree(place).entries() for place in (folders.conditions, folders.normals)
        )
        is_drawn = None if self._config.validation_images is not None else self._drawn(images)
        for name, (pictures, condition, normal) in alike(images, conditions, normals):
            found = list(pictures_among(pictures))
            if not found:
                if is_drawn is None or split == "train":
                    yield from self._orphans(folders, condition)
            elif is_drawn is None or is_drawn(name) == (split == "validation"):
                parts = best_condition(condition), best_condition(normal)
                for entry in found:
                    yield self._item(folders, name, entry, *parts)

    def _drawn(self, images: Listing) -> Callable[[str], bool]:
        names = (name for name, (entries,) in alike(images) if any(pictures_among(entries)))
        return draw_validation(names, self._config.validation_share)

    def _orphans(self, folders: Folders, conditions: list[Entry]) -> Iterator[FileItem]:
        entry = best_condition(conditions)
        if entry is not None:
            key, fault = safe_key(entry.path, *folders.place, "conditions"), "condition without a picture"
            yield FileItem.of(key, entry.path, self._reading, [entry], image=None, fault=fault)

    def _item(
        self, folders: Folders, name: str, entry: Entry, condition: Entry | None, normal: Entry | None
    ) -> FileItem:
        fault = None
        if folders.conditions is not None and condition is None:
            fault = f"no condition {name}.* in {folders.conditions}"
        elif folders.normals is not None and normal is None:
            fault = f"no normals {name}.* in {folders.normals}"
        return FileItem.of(
            safe_key(entry.path, *folders.place), entry.path, self._reading, [entry, condition, normal], fault=fault,
            image=TreeFile(folders.images, entry.path), condition=_file(folders.conditions, condition),
            normals=_file(folders.normals, normal),
        )  # fmt: skip


def _file(folder: str | None, entry: Entry | None) -> TreeFile | None:
    return None if folder is None or entry is None else TreeFile(folder, entry.path)
