"""An item that lies in files: a picture, and what goes with it. Shared by all sources that read files.

Items are tuples: they are pickled by the million while planning, and dataclasses with slots are slow to pickle.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from piti import storage
from piti.data.items import LoadedItem, RawCondition, RejectedItem
from piti.data.sources.listing import Entry, read_file
from piti.data.sources.names import shown
from piti.data.sources.retrying import read_or_reject
from piti.data.sources.trees import open_tree

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from piti.config import DataConfig, SketchInversion
    from piti.data.sources.pictures import Picture

logger = logging.getLogger("piti")

_READ_BY_PILLOW = (
    ".jpg .jpeg .jpe .jfif .png .apng .webp .avif .avifs .bmp .dib .tif .tiff .gif .ppm .pgm .pbm .pnm .pfm "
    ".jp2 .j2k .j2c .jpc .jpf .jpx .tga .icb .vda .vst .pcx .qoi .sgi .psd"
)
_PICTURES_ALL_THE_SAME = ".heic .heif .hif .jxl"  # listed, so that each is rejected with a reason instead of vanishing
PICTURE_SUFFIXES = frozenset(f"{_READ_BY_PILLOW} {_PICTURES_ALL_THE_SAME}".split())
_UNLABELLED = 255
_DEPTH_METRES = 0.5, 300.0  # what shards tell apart
_SAME_ASPECT = 0.02  # relative difference of width / height up to which picture and condition show the same frame


class FilePart(Protocol):
    """One file of an item. Small and picklable."""

    @property
    def path(self) -> str:
        """For people: where it lies in its dataset."""

    @property
    def place(self) -> str:
        """What is opened to read it: a tree, a tar, or the file itself."""

    def read(self) -> bytes:
        """Its content. Raises OSError."""


class TreeFile(NamedTuple):
    """A file of the tree at `place`."""

    place: str
    path: str

    def read(self) -> bytes:
        return open_tree(self.place).read(self.path)


class UriFile(NamedTuple):
    """A file by its own path or URI."""

    path: str

    @property
    def place(self) -> str:
        return self.path

    def read(self) -> bytes:
        return read_file(self.path)


class Reading(NamedTuple):
    """How files become values. `depth_unit_metres` is that of integer depth pictures; `invert`: `data.sketch.invert`."""

    modality: str
    num_classes: int | None
    depth_unit_metres: float = 0.001
    invert: SketchInversion = "auto"

    @classmethod
    def of(cls, data: DataConfig, depth_unit_metres: float = 0.001) -> Reading:
        return cls(data.modality, data.num_classes, depth_unit_metres, data.sketch.invert)


class FileItem(NamedTuple):
    """A picture with the files that go with it, or `fault`: why it cannot be a sample.

    `condition` is a label map, a sketch or a depth map, a picture or `.npy`; None where a sketch is to be detected.
    `validity` (geometry): where the depth counts, a `.npy` that is positive there.
    """

    key: str
    origin: str
    identity: str
    reading: Reading
    image: FilePart | None
    condition: FilePart | None = None
    normals: FilePart | None = None
    validity: FilePart | None = None
    fault: str | None = None

    @classmethod
    def of(cls, key: str, origin: str, reading: Reading, entries: Iterable[Entry | None], **parts: Any) -> FileItem:
        """Made of the files that a listing holds, with their joint identity; `parts` are the other fields."""
        identity = "|".join(entry.identity for entry in entries if entry is not None)
        fault = parts.pop("fault", None)
        return cls(key, shown(origin), shown(identity), reading, fault=None if fault is None else shown(fault), **parts)

    @property
    def is_remote(self) -> bool:
        return any(part is not None and not storage.is_local(part.place) for part in self[4:8])

    def load(self) -> LoadedItem:
        """Read and decode. Raises RejectedItem with the reason where that fails or parts do not fit together."""
        from piti.data.sources.pictures import decode_picture

        if self.fault is not None or self.image is None:
            raise RejectedItem(self.fault or "no picture")
        data = _read(self.image)
        picture = decode_picture(data)
        parts = (("condition", self.condition), ("normals", self.normals))
        origins = {f"{name}_origin": None if part is None else shown(part.path) for name, part in parts}
        provenance = {"format": picture.file_format, **origins}
        if picture.colours is not None:
            provenance["colours"] = picture.colours
            if picture.colours.startswith("unusable"):
                logger.warning("%s: %s, its colours are taken for sRGB", self.origin, picture.colours)
        condition = None
        if self.condition is not None:
            condition = self._condition(self.condition, picture, provenance)
        original = None if picture.keep is None else (data, picture.keep)
        oddity = None if condition is None else self._oddity(condition, provenance)
        return LoadedItem(picture.image, condition, provenance, original, picture.lossy, oddity)

    def _oddity(self, condition: RawCondition, provenance: dict[str, Any]) -> str | None:
        """What is implausible about a condition, and which key to look at."""
        values = condition.values
        if self.reading.modality == "sketch":
            if self.reading.invert == "auto" and provenance["sketch_inverted"]:
                return "lines are taken to be dark, as less than half of the sketch is: see data.sketch.invert"
            return "more than half of the sketch is lines: see data.sketch.invert" if values.mean() > 127 else None
        if self.reading.modality == "mask":
            found = values[values != _UNLABELLED]
            is_single = found.size == 0 or found.min() == found.max()
            return "the label map holds a single label, 255 (unlabelled) aside: see data.source" if is_single else None
        known = values[values > 0].clip(*_DEPTH_METRES)
        if known.min() == known.max():
            return "depth is the same everywhere from 0.5 m to 300 m: see data.source.depth_unit_metres"
        return None

    def _condition(self, part: FilePart, picture: Picture, provenance: dict[str, Any]) -> RawCondition:
        """The condition that lies over the upright picture; what its values are is noted in `provenance`."""
        from piti.data.sources import measurements
        from piti.data.sources.pictures import decode_sketch, upright

        content = _read(part)
        if self.reading.modality == "mask":
            from piti.data.conditions import check_labels

            values = measurements.labels(content)
            check_labels(values, self.reading.num_classes or 0)
        elif self.reading.modality == "sketch":
            values, provenance["sketch_inverted"] = decode_sketch(content, self.reading.invert)
        else:
            values = measurements.depth(content, self.reading.depth_unit_metres)
            if self.validity is not None:
                values = measurements.where_valid(values, _read(self.validity))
            if not values.any():
                raise RejectedItem("depth is unknown at every pixel")
        values = upright(values, picture, "condition")
        _check_frame(picture.image.shape, values.shape, "condition")
        if self.reading.modality != "geometry" or self.normals is None:
            return RawCondition(values)
        return RawCondition(values, self._normals(self.normals, picture))

    def _normals(self, part: FilePart, picture: Picture) -> NDArray[np.float32]:
        from piti.data.sources import measurements
        from piti.data.sources.pictures import upright

        normals = upright(measurements.normals(_read(part)), picture, "normal map")
        _check_frame(picture.image.shape, normals.shape, "normal map")
        return normals


def is_picture(path: str) -> bool:
    """Whether a file is a picture by its suffix."""
    return "." + path.rpartition(".")[2].lower() in PICTURE_SUFFIXES


def _is_array(path: str) -> bool:
    return path.lower().endswith(".npy")


def pictures_among(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The entries that are pictures by their suffix."""
    return (entry for entry in entries if is_picture(entry.path))


def usable_among(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The entries that may be conditions: pictures and NumPy files."""
    return (entry for entry in entries if is_picture(entry.path) or _is_array(entry.path))


def best_condition(alike: Iterable[Entry]) -> Entry | None:
    """Of files named alike, that which is the condition: the last picture, else the last NumPy file."""
    best = None
    for entry in usable_among(alike):
        if best is None or is_picture(entry.path) or not is_picture(best.path):
            best = entry
    return best


def listing_fingerprint(version: int, places: Iterable[str | None]) -> str:
    """Changes whenever the listing of a place does (None: no place). Raises DataError where a place is missing."""
    digest = hashlib.sha256(str(version).encode())
    for place in filter(None, places):
        for entry in open_tree(place).entries():
            digest.update(f"{place}|{entry.identity}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _check_frame(picture: tuple[int, ...], other: tuple[int, ...], what: str) -> None:
    """Raise RejectedItem where two arrays (H, W, ...) cannot show the same frame."""
    ratio = (picture[1] / picture[0]) / (other[1] / other[0])
    if abs(ratio - 1) > _SAME_ASPECT:
        raise RejectedItem(f"{what} is {other[1]}x{other[0]} pixels, the picture {picture[1]}x{picture[0]}")


def _read(part: FilePart) -> bytes:
    return read_or_reject(part.path, part.read)
