"""Any folder of pictures, with or without a folder of conditions beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from piti.data.sources.base import Item, LoadedItem, RawCondition, RejectedItem, Split
from piti.data.sources.keys import safe_key, stable_hash, unit_hash
from piti.data.sources.trees import Entry, open_tree
from piti.errors import DataError, PitiError

if TYPE_CHECKING:
    from piti.config import DataConfig

_FORMAT_VERSION = 1
_SAME_ASPECT = 0.02  # relative difference of width / height up to which picture and condition show the same frame


class PairedSourceConfig(BaseModel):
    """`images` and `conditions` are folders whose files pair up by relative path without its suffix.

    Folders may be local, in object storage, or a .zip or .tar archive. Without `conditions`, sketches are detected in
    the pictures. Without `validation_images`, a share of the pictures (drawn by key) becomes the validation split.
    For geometry, `conditions` holds depth as 16-bit pictures of multiples of `depth_unit_metres` (0: unknown) and
    `normals` pictures of (n + 1) / 2; without it, normals count as unknown.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["paired"] = "paired"
    images: str
    conditions: str | None = None
    normals: str | None = None
    validation_images: str | None = None
    validation_conditions: str | None = None
    validation_normals: str | None = None
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.05
    depth_unit_metres: Annotated[float, Field(gt=0)] = 0.001

    @model_validator(mode="after")
    def _folders_agree(self) -> Self:
        for name in ("conditions", "normals"):
            here, there = getattr(self, name), getattr(self, f"validation_{name}")
            if self.validation_images is None and there is not None:
                raise ValueError(f"validation_{name} is given without validation_images")
            if self.validation_images is not None and (here is None) != (there is None):
                raise ValueError(f"give both {name} and validation_{name}, or neither")
        return self


@dataclass(frozen=True)
class Folders:
    """The places that one split is read from."""

    images: str
    conditions: str | None
    normals: str | None


@dataclass(frozen=True)
class PairedItem:
    """A picture with the files that go with it, or `fault`: why it cannot be one. Paths are relative to `folders`."""

    folders: Folders
    modality: str
    num_classes: int | None
    depth_unit_metres: float
    key: str
    origin: str
    identity: str
    condition: str | None = None
    normals: str | None = None
    fault: str | None = None

    def load(self) -> LoadedItem:
        from piti.data.sources.pictures import decode_picture

        if self.fault is not None:
            raise RejectedItem(self.fault)
        data = _read(self.folders.images, self.origin)
        picture = decode_picture(data)
        condition = self._condition()
        if condition is not None:
            _check_frame(picture.image.shape, condition.values.shape, "condition")
            if condition.normals is not None:
                _check_frame(picture.image.shape, condition.normals.shape, "normal map")
        provenance = {"format": picture.file_format, "condition_origin": self.condition, "normals_origin": self.normals}
        original = None if picture.keep is None else (data, picture.keep)
        return LoadedItem(picture.image, condition, provenance, original, picture.lossy)

    def _condition(self) -> RawCondition | None:
        from piti.data.sources import pictures

        if self.condition is None or self.folders.conditions is None:
            return None
        data = _read(self.folders.conditions, self.condition)
        if self.modality == "mask":
            labels = pictures.decode_labels(data)
            check_labels(labels, self.num_classes or 0)
            return RawCondition(labels)
        if self.modality == "sketch":
            return RawCondition(pictures.decode_edges(data))
        depth = pictures.decode_depth(data, self.depth_unit_metres)
        if not depth.any():
            raise RejectedItem("depth is unknown at every pixel")
        if self.normals is None or self.folders.normals is None:
            return RawCondition(depth)
        return RawCondition(depth, pictures.decode_normals(_read(self.folders.normals, self.normals)))


class PairedSource:
    """See PairedSourceConfig. Every picture file is an item; so is a condition without a picture (rejected)."""

    def __init__(self, config: PairedSourceConfig, data: DataConfig) -> None:
        self._config = config
        self._data = data

    def _folders(self, split: Split) -> Folders:
        config = self._config
        if split == "validation" and config.validation_images is not None:
            return Folders(config.validation_images, config.validation_conditions, config.validation_normals)
        return Folders(config.images, config.conditions, config.normals)

    def _all_folders(self) -> list[str]:
        config = self._config
        validation = (config.validation_images, config.validation_conditions, config.validation_normals)
        places = (config.images, config.conditions, config.normals, *validation)
        return [place for place in dict.fromkeys(places) if place is not None]

    def fingerprint(self) -> str:
        digest = hashlib.sha256(str(_FORMAT_VERSION).encode())
        for place in self._all_folders():
            for entry in open_tree(place).entries():
                digest.update(f"{place}|{entry.identity}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def problems(self) -> list[PitiError]:
        problems: list[PitiError] = []
        for place in self._all_folders():
            try:
                if not _pictures(open_tree(place).entries()):
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
        """In the order of paths. Raises DataError where a folder does not exist."""
        folders = self._folders(split)
        images = _pictures(open_tree(folders.images).entries())
        conditions = _by_stem(folders.conditions)
        normals = _by_stem(folders.normals)
        if self._config.validation_images is None:
            chosen = _validation_stems(images, self._config.validation_share)
            mine = [entry for entry in images if (_stem(entry.path) in chosen) == (split == "validation")]
        else:
            mine = images
        for entry in mine:
            yield self._item(folders, entry, conditions, normals)
        if split == "train" or self._config.validation_images is not None:
            yield from self._orphans(folders, images, conditions)

    def _item(
        self, folders: Folders, entry: Entry, conditions: dict[str, Entry], normals: dict[str, Entry]
    ) -> PairedItem:
        stem = _stem(entry.path)
        condition, normal = conditions.get(stem), normals.get(stem)
        fault = None
        if folders.conditions is not None and condition is None:
            fault = f"no condition {stem}.* in {folders.conditions}"
        elif folders.normals is not None and normal is None:
            fault = f"no normals {stem}.* in {folders.normals}"
        identity = "|".join(part.identity for part in (entry, condition, normal) if part is not None)
        return self._make(
            folders, safe_key(entry.path), entry.path, identity,
            condition.path if condition else None, normal.path if normal else None, fault,
        )  # fmt: skip

    def _orphans(self, folders: Folders, images: list[Entry], conditions: dict[str, Entry]) -> Iterator[PairedItem]:
        stems = {_stem(entry.path) for entry in images}
        for stem, entry in sorted(conditions.items()):
            if stem not in stems:
                key = safe_key(f"conditions/{entry.path}")
                yield self._make(folders, key, entry.path, entry.identity, None, None, "condition without a picture")

    def _make(
        self,
        folders: Folders,
        key: str,
        origin: str,
        identity: str,
        condition: str | None,
        normals: str | None,
        fault: str | None,
    ) -> PairedItem:
        data = self._data
        return PairedItem(
            folders, data.modality, data.num_classes, self._config.depth_unit_metres, key, origin, identity,
            condition, normals, fault,
        )  # fmt: skip


def check_labels(labels: object, num_classes: int) -> None:
    """Raise RejectedItem unless all labels (an array) are below `num_classes` or 255, which means unlabelled."""
    import numpy as np

    found = np.unique(np.asarray(labels))
    wrong = found[(found >= num_classes) & (found != 255)]
    if wrong.size:
        listed = ", ".join(str(value) for value in wrong[:5])
        raise RejectedItem(f"label {listed} is outside 0..{num_classes - 1} (and not 255, unlabelled)")


def _check_frame(picture: tuple[int, ...], other: tuple[int, ...], what: str) -> None:
    """Raise RejectedItem where two arrays (H, W, ...) cannot show the same frame."""
    ratio = (picture[1] / picture[0]) / (other[1] / other[0])
    if abs(ratio - 1) > _SAME_ASPECT:
        raise RejectedItem(f"{what} is {other[1]}x{other[0]} pixels, the picture {picture[1]}x{picture[0]}")


def _read(folder: str, path: str) -> bytes:
    try:
        return open_tree(folder).read(path)
    except OSError as error:
        raise RejectedItem(f"{path} cannot be read ({error.strerror or error})") from error


def _stem(path: str) -> str:
    """A relative path without its file's suffix."""
    folder, slash, name = path.rpartition("/")
    return folder + slash + (name.rsplit(".", 1)[0] if "." in name else name)


def _pictures(entries: Iterable[Entry]) -> list[Entry]:
    from piti.data.sources.pictures import PICTURE_SUFFIXES

    return [entry for entry in entries if "." + entry.path.rsplit(".", 1)[-1].lower() in PICTURE_SUFFIXES]


def _by_stem(folder: str | None) -> dict[str, Entry]:
    return {} if folder is None else {_stem(entry.path): entry for entry in _pictures(open_tree(folder).entries())}


def _validation_stems(images: list[Entry], share: float) -> set[str]:
    """Stems drawn by their own hash, so that a picture keeps its split when others come or go; at least one."""
    stems = {_stem(entry.path) for entry in images}
    chosen = {stem for stem in stems if unit_hash("validation", stem) < share}
    if not chosen and len(stems) > 1:
        chosen = {min(stems, key=lambda stem: stable_hash("validation", stem))}
    return chosen
