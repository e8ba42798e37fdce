"""An item that lies in files: a picture, and what goes with it. Shared by all sources that read files.

Tuples, since dataclasses with slots are pickled by Python code, which is a good part of planning.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from piti import storage
from piti.data.items import LoadedItem, RawCondition, RejectedItem
from piti.data.sources.archives import read_span, read_span_soon
from piti.data.sources.entries import Entry
from piti.data.sources.reading import read_or_reject
from piti.data.sources.trees import open_tree

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from piti.config import DataConfig
    from piti.data.sources.pictures import Picture

_READ_BY_PILLOW = (
    ".jpg .jpeg .jpe .jfif .png .apng .webp .avif .avifs .bmp .dib .tif .tiff .gif .ppm .pgm .pbm .pnm .pfm "
    ".jp2 .j2k .j2c .jpc .jpf .jpx .tga .icb .vda .vst .pcx .qoi .sgi .psd"
)
_PICTURES_ALL_THE_SAME = ".heic .heif .hif .jxl"  # listed, so that each is rejected with a reason instead of vanishing
PICTURE_SUFFIXES = frozenset(f"{_READ_BY_PILLOW} {_PICTURES_ALL_THE_SAME}".split())
_STORED_BITS = {"mask": 8, "sketch": 1}  # a pixel of the grey PNGs that shards hold of conditions
_SAME_ASPECT = 0.02  # relative difference of width / height up to which picture and condition show the same frame


class FilePart(Protocol):
    """One file of an item. Small and picklable."""

    @property
    def path(self) -> str:
        """For people: where it lies in its dataset."""

    @property
    def is_remote(self) -> bool:
        """Whether reading it asks a server."""

    def read(self) -> bytes:
        """Its content. Raises OSError."""

    def read_soon(self) -> None:
        """Have a local disk begin to read it."""


class TreeFile(NamedTuple):
    """A file of the tree at `place`."""

    place: str
    path: str

    @property
    def is_remote(self) -> bool:
        return not storage.is_local(self.place)

    def read(self) -> bytes:
        return open_tree(self.place).read(self.path)

    def read_soon(self) -> None:
        open_tree(self.place).read_soon(self.path)


class TarSpan(NamedTuple):
    """A member of a tar by its place in it, so that the tar need not be listed again to read it."""

    tar: str
    path: str
    offset: int
    size_bytes: int

    @property
    def is_remote(self) -> bool:
        return not storage.is_local(self.tar)

    def read(self) -> bytes:
        return read_span(self.tar, self.offset, self.size_bytes)

    def read_soon(self) -> None:
        read_span_soon(self.tar, self.offset, self.size_bytes)


class Reading(NamedTuple):
    """How files become values. `depth_unit_metres` is that of integer depth pictures.

    `keeps_conditions`: whether a condition's file may become part of a shard as it is; `trusts_headers`: without being
    decoded.
    """

    modality: str
    num_classes: int | None
    depth_unit_metres: float = 0.001
    conditions_follow_exif: bool | None = None
    keeps_conditions: bool = False
    trusts_headers: bool = False

    @classmethod
    def of(cls, data: DataConfig, depth_unit_metres: float = 0.001) -> Reading:
        keeps = data.geometry == "random"
        return cls(data.modality, data.num_classes, depth_unit_metres, data.conditions_follow_exif, keeps)


class FileItem(NamedTuple):
    """A picture with the files that go with it, or `fault`: why it cannot be a sample.

    `condition` is a label map, a sketch or a depth map, a picture or `.npy`; None where a sketch is to be detected.
    `validity` (geometry): where the depth counts, a `.npy` that is positive there. `size_bytes`: of all its files.
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
    size_bytes: int = 0

    @property
    def is_remote(self) -> bool:
        return any(part.is_remote for part in self._parts)

    @property
    def _parts(self) -> Iterator[FilePart]:
        return (part for part in (self.image, self.condition, self.normals, self.validity) if part is not None)

    def read_soon(self) -> None:
        if self.fault is None and self.image is not None:
            for part in self._parts:
                part.read_soon()

    def load(self) -> LoadedItem:
        """Read and decode. Raises RejectedItem with the reason where that fails or parts do not fit together."""
        from piti.data.grey_png import decode_grey_png
        from piti.data.sources.pictures import decode_picture

        if self.fault is not None or self.image is None:
            raise RejectedItem(self.fault or "no picture")
        data = _read(self.image)
        picture = decode_picture(data)
        condition = stored = None
        if self.condition is not None:
            content = _read(self.condition)
            is_stored_form = self._is_stored_form(self.condition.path, content, picture)
            if is_stored_form and self.reading.trusts_headers:
                stored = content
            elif is_stored_form and (values := decode_grey_png(content)) is not None:
                condition, stored = self._checked(values), content
            else:
                condition = self._upright(self._decoded(self.condition.path, content), picture)
                _check_frames(picture.rgb.shape, condition)
        parts = (("condition", self.condition), ("normals", self.normals))
        origins = {f"{name}_origin": None if part is None else part.path for name, part in parts}
        original = None if picture.keep is None else (data, picture.keep)
        provenance = {"format": picture.file_format, **origins}
        return LoadedItem(picture.rgb, condition, provenance, original, picture.lossy, stored)

    def _is_stored_form(self, path: str, content: bytes, picture: Picture) -> bool:
        """Whether a condition's file is, by its structure, what a shard would hold of it: its bytes may be kept."""
        from piti.data.sources.structure import GreyPng, read_grey_png

        bits = _STORED_BITS.get(self.reading.modality)
        if not self.reading.keeps_conditions or bits is None or picture.orientation != 1 or _is_array(path):
            return False
        height, width = picture.rgb.shape[:2]
        return read_grey_png(content) == GreyPng(height, width, bits)

    def _upright(self, condition: RawCondition, picture: Picture) -> RawCondition:
        """The condition turned as EXIF turned the picture, where it lies like the file's pixels. Raises RejectedItem."""
        if picture.orientation == 1:
            return condition
        from piti.data.sources import turning

        upright, follows = picture.rgb.shape[:2], self.reading.conditions_follow_exif
        values, normals = condition.values, condition.normals
        if turning.is_stored(values.shape, upright, picture.orientation, follows):
            values = turning.turned_values(values, picture.orientation)
        if normals is not None and turning.is_stored(normals.shape, upright, picture.orientation, follows):
            normals = turning.turned_normals(normals, picture.orientation)
        return RawCondition(values, normals)

    def _decoded(self, path: str, data: bytes) -> RawCondition:
        """The condition that a file of that name and content holds."""
        from piti.data.sources import arrays, pictures

        is_array = _is_array(path)
        if self.reading.modality == "mask":
            return self._checked(arrays.decode_labels(data) if is_array else pictures.decode_labels(data))
        if self.reading.modality == "sketch":
            return RawCondition(pictures.decode_edges(data))
        unit = self.reading.depth_unit_metres
        depth = arrays.decode_depth(data) if is_array else pictures.decode_depth(data, unit)
        if self.validity is not None:
            depth = arrays.where_valid(depth, arrays.decode_validity(_read(self.validity)))
        if not depth.any():
            raise RejectedItem("depth is unknown at every pixel")
        return RawCondition(depth, None if self.normals is None else _normals(self.normals))

    def _checked(self, values: NDArray[Any]) -> RawCondition:
        """Labels or edges. Raises RejectedItem where there are no such labels."""
        from piti.data.conditions import check_labels

        if self.reading.modality == "mask":
            check_labels(values, self.reading.num_classes or 0)
        return RawCondition(values)


def _normals(part: FilePart) -> NDArray[np.float32]:
    from piti.data.sources import arrays, pictures

    data = _read(part)
    return arrays.decode_normals(data) if _is_array(part.path) else pictures.decode_normals(data)


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


def listing_fingerprint(version: int, places: Iterable[str]) -> str:
    """Changes whenever the listing of a place does. Raises DataError where a place is missing."""
    digest = hashlib.sha256(str(version).encode())
    for place in places:
        for entry in open_tree(place).entries():
            digest.update(f"{place}|{entry.identity}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def joint_identity(*parts: Entry | None) -> str:
    """Changes whenever one of an item's files may have changed."""
    return "|".join(part.identity for part in parts if part is not None)


def joint_size(*parts: Entry | None) -> int:
    """Bytes of an item's files."""
    return sum(part.size_bytes for part in parts if part is not None)


def _check_frames(picture: tuple[int, ...], condition: RawCondition) -> None:
    """Raise RejectedItem where a condition cannot show what a picture (H, W, ...) does."""
    _check_frame(picture, condition.values.shape, "condition")
    if condition.normals is not None:
        _check_frame(picture, condition.normals.shape, "normal map")


def _check_frame(picture: tuple[int, ...], other: tuple[int, ...], what: str) -> None:
    """Raise RejectedItem where two arrays (H, W, ...) cannot show the same frame."""
    ratio = (picture[1] / picture[0]) / (other[1] / other[0])
    if abs(ratio - 1) > _SAME_ASPECT:
        raise RejectedItem(f"{what} is {other[1]}x{other[0]} pixels, the picture {picture[1]}x{picture[0]}")


def _read(part: FilePart) -> bytes:
    return read_or_reject(part.path, part.read)
