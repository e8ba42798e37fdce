"""DIODE: photographs with dense depth and surface normals, indoors and outdoors, as distributed.

    train/indoors/scene_00000/scan_00000/00000_00000_indoors_000_010.png
                                         00000_00000_indoors_000_010_depth.npy        (768, 1024, 1) metres
                                         00000_00000_indoors_000_010_depth_mask.npy   (768, 1024) 1 where depth counts
                                         00000_00000_indoors_000_010_normal.npy       (768, 1024, 3)
    val/...

Normals are downloaded separately: they may lie beside the rest, or below train_normals/ and val_normals/.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from piti import storage
from piti.config import DataConfig, DiodeSourceConfig
from piti.data.items import SPLITS, Item, Split
from piti.data.sources.files import FileItem, Reading, TreeFile, listing_fingerprint
from piti.data.sources.listing import Entry, Listing
from piti.data.sources.names import safe_key, stem
from piti.data.sources.trees import find_place, forms, open_tree
from piti.errors import DataError, PitiError

_FORMAT_VERSION = 4
_FOLDERS: dict[Split, str] = {"train": "train", "validation": "val"}
_DEPTH, _MASK, _NORMAL = "_depth.npy", "_depth_mask.npy", "_normal.npy"
_Normals = dict[str, tuple[str, Entry]]
_EXPECTED = (
    "data.source.root must hold train/ and val/ with indoors/ and outdoor/ in them, or train.tar.gz and val.tar.gz"
)


class DiodeSource:
    """See the module's text. Every picture is an item; so is depth without a picture (rejected)."""

    def __init__(self, config: DiodeSourceConfig, data: DataConfig) -> None:
        self._config, self._data = config, data

    @property
    def _uses_normals(self) -> bool:
        return self._config.normals and self._data.modality == "geometry"

    def _place(self, split: Split) -> str | None:
        return find_place(self._config.root, forms(_FOLDERS[split]))

    def _normal_places(self, split: Split) -> list[str]:
        """Where normals of a split may lie: beside the rest, and in a folder or archive of their own."""
        folder = _FOLDERS[split]
        apart = find_place(self._config.root, [f"normals/{folder}", *forms(f"{folder}_normals", inside="")])
        return [place for place in (self._place(split), apart) if place is not None]

    def fingerprint(self, splits: Sequence[Split] = SPLITS) -> str:
        places: list[str | None] = []
        for split in splits:
            places += self._normal_places(split) if self._uses_normals else [self._place(split)]
        return listing_fingerprint(_FORMAT_VERSION, places)

    def problems(self, splits: Sequence[Split] = SPLITS) -> list[PitiError]:
        problems: list[PitiError] = []
        if self._data.modality == "mask":
            problems.append(DataError("DIODE has no label maps, which modality mask needs", "use modality geometry"))
        for split in splits:
            place = self._place(split)
            if place is None:
                problems.append(
                    DataError(f"DIODE: no {split} split at {self._config.root}/{_FOLDERS[split]}", _EXPECTED)
                )
            elif not any(self._pictures(open_tree(place).entries())):
                problems.append(DataError(f"DIODE: {place} holds no pictures of {self._config.scenes}", _EXPECTED))
            elif self._uses_normals and not self._normals(split):
                problems.append(
                    DataError(
                        f"DIODE: there are no normals (*{_NORMAL}) for the {split} split",
                        f"download {_FOLDERS[split]}_normals to {self._config.root}, or set data.source.normals to false",
                    )
                )
        return problems

    def items(self, split: Split) -> Iterator[Item]:
        """In the order of names. Raises DataError where the split is missing."""
        place = self._place(split)
        if place is None:
            raise DataError(f"DIODE: no {split} split at {self._config.root}/{_FOLDERS[split]}", _EXPECTED)
        files = open_tree(place).entries()
        normals = self._normals(split) if self._uses_normals else {}
        for picture in self._pictures(files):
            yield self._item(split, place, picture, files, normals)
        if self._data.modality == "geometry":
            yield from self._orphans(split, files)

    def _orphans(self, split: Split, files: Listing) -> Iterator[FileItem]:
        stems = {stem(picture.path) for picture in self._pictures(files)}
        for entry in files:
            name = entry.path.removesuffix(_DEPTH)
            if name != entry.path and self._is_wanted(entry.path) and name not in stems:
                key, fault = safe_key(entry.path, split), "depth without a picture"
                yield FileItem.of(key, entry.path, Reading.of(self._data), [entry], image=None, fault=fault)

    def _item(self, split: Split, place: str, picture: Entry, files: Listing, normals: _Normals) -> FileItem:
        name, reading, key = stem(picture.path), Reading.of(self._data), safe_key(picture.path, split)
        image = TreeFile(place, picture.path)
        if self._data.modality != "geometry":
            return FileItem.of(key, picture.path, reading, [picture], image=image)
        depth, mask, normal = files.get(f"{name}{_DEPTH}"), files.get(f"{name}{_MASK}"), None
        fault = None if depth is not None else f"no {name}{_DEPTH}"
        if depth is not None and mask is None:
            fault = f"no {name}{_MASK}"
        if self._uses_normals:
            path = f"{name}{_NORMAL}"
            normal = normals.get(_from_scenes(path)) or normals.get(storage.name(path))
            fault = fault or (None if normal is not None else f"no {path}")
        return FileItem.of(
            key, picture.path, reading, [picture, depth, mask, None if normal is None else normal[1]], fault=fault,
            image=image, condition=None if depth is None else TreeFile(place, depth.path),
            normals=None if normal is None else TreeFile(normal[0], normal[1].path),
            validity=None if mask is None else TreeFile(place, mask.path),
        )  # fmt: skip

    def _pictures(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        return (entry for entry in entries if entry.path.lower().endswith(".png") and self._is_wanted(entry.path))

    def _is_wanted(self, path: str) -> bool:
        """Whether a file's scene is of a wanted kind, which the first folder tells."""
        kind = path.split("/", 1)[0]
        return any(kind in (scenes, f"{scenes}s") for scenes in self._config.scenes)

    def _normals(self, split: Split) -> _Normals:
        """Place and entry of each normal map, by what `_from_scenes` makes of its path."""
        return {
            _from_scenes(entry.path): (place, entry)
            for place in self._normal_places(split)
            for entry in open_tree(place).entries()
            if entry.path.endswith(_NORMAL)
        }


def _from_scenes(path: str) -> str:
    """A path from its folder indoors or outdoor on, however spelled; its base name where it lies in neither."""
    parts = path.split("/")
    for number, part in enumerate(parts[:-1]):
        if part.rstrip("s") in ("indoor", "outdoor"):
            return "/".join([part.rstrip("s"), *parts[number + 1 :]])
    return parts[-1]
