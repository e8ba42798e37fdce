"""Photographs that come with scikit-image, cut into crops: real pictures without a download.

Each photograph is divided once: its right third belongs to validation, the rest to training, so that no pixel of a
validation crop is ever trained on. The motorcycle is a stereo pair of one scene: the left view is divided like the
others, the right view is for training only, and only as far as none of the left view's validation third is in it.
Sketches are detected in the crops; label maps are their own colours in 64 classes (`palette_labels`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from piti.config import BundledSourceConfig, DataConfig
from piti.data.items import SPLITS, Item, LoadedItem, RawCondition, Split
from piti.errors import DataError, PitiError

if TYPE_CHECKING:
    from piti.data.sources.pictures import Picture

_FORMAT_VERSION = 1
_VALIDATION_SHARE = 1 / 3
_MOTORCYCLE_MAX_DISPARITY_PIXELS = 64  # 59.9 is the largest in motorcycle_disp.npz
_SMALLEST_SHARE = 0.5  # smallest side of a crop, as a share of the validation region's short side
PHOTOGRAPHS = (
    "astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "retina.jpg", "hubble_deep_field.jpg", "ihc.png",
    "motorcycle_left.png", "motorcycle_right.png",
)  # fmt: skip
_TRAINING_ONLY = "motorcycle_right.png"
_PALETTE_CLASSES, _PALETTE_VERSION = 64, 1  # of piti.data.palette, whose import costs time that plans do not have


@dataclass(frozen=True)
class Box:
    """A rectangle of a picture in pixels: columns [left, right), rows [top, bottom)."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class BundledItem:
    """Crop number `index` of a split; which photograph and where follows from the number alone."""

    split: Split
    index: int
    identity: str
    labelled: bool = False

    @property
    def photograph(self) -> str:
        names = [name for name in PHOTOGRAPHS if self.split == "train" or name != _TRAINING_ONLY]
        return names[self.index % len(names)]

    @property
    def key(self) -> str:
        return f"{self.split}-{self.index:06d}-{Path(self.photograph).stem}"

    @property
    def origin(self) -> str:
        return f"scikit-image/{self.photograph}"

    @property
    def is_remote(self) -> bool:
        return False

    def load(self) -> LoadedItem:
        import numpy as np

        picture = _photograph(self.photograph)
        box = self.box(*picture.image.shape[:2])
        crop = np.ascontiguousarray(picture.image[box.top : box.bottom, box.left : box.right])
        where: dict[str, object] = {"photograph": self.photograph, "box": [box.left, box.top, box.right, box.bottom]}
        condition = None
        if self.labelled:
            from piti.data.palette import PALETTE, palette_labels

            condition, where = RawCondition(palette_labels(crop)), {**where, "labels": PALETTE}
        return LoadedItem(crop, condition, where, lossy=picture.lossy)

    def box(self, height: int, width: int) -> Box:
        """The square that this crop shows of its photograph of `height` x `width` pixels."""
        import numpy as np

        validation = region(self.photograph, "validation", height, width)
        allowed = region(self.photograph, self.split, height, width)
        smallest = round(_SMALLEST_SHARE * min(validation.right - validation.left, height))
        largest = min(allowed.right - allowed.left, allowed.bottom - allowed.top)
        seed = hashlib.sha256(f"bundled/{self.split}/{self.index}".encode()).digest()
        rng = np.random.default_rng(list(seed))
        side = int(rng.integers(smallest, largest + 1))
        left = int(rng.integers(allowed.left, allowed.right - side + 1))
        top = int(rng.integers(allowed.top, allowed.bottom - side + 1))
        return Box(left, top, left + side, top + side)


class BundledSource:
    """See the module's text."""

    def __init__(self, config: BundledSourceConfig, data: DataConfig) -> None:
        self._config = config
        self._modality = data.modality
        self._num_classes = data.num_classes

    def fingerprint(self, splits: Sequence[Split] = SPLITS) -> str:
        sizes = [f"{name}:{path.stat().st_size if path.is_file() else 'missing'}" for name, path in _paths()]
        return hashlib.sha256("\n".join([str(_FORMAT_VERSION), *sizes]).encode()).hexdigest()

    def problems(self, splits: Sequence[Split] = SPLITS) -> list[PitiError]:
        problems: list[PitiError] = []
        missing = [name for name, path in _paths() if not path.is_file()]
        if missing:
            remedy = "pip install --force-reinstall scikit-image"
            problems.append(DataError(f"scikit-image's photographs {', '.join(missing)} are not installed", remedy))
        if self._modality == "geometry":
            problem = f"data.source bundled has no conditions for modality {self._modality}"
            problems.append(DataError(problem, "use modality sketch or mask, which are made from the pictures"))
        if self._modality == "mask" and self._num_classes != _PALETTE_CLASSES:
            problem = (
                f"data.source bundled has label maps of {_PALETTE_CLASSES} colours, not of {self._num_classes} classes"
            )
            problems.append(DataError(problem, f"set data.num_classes to {_PALETTE_CLASSES}"))
        return problems

    def items(self, split: Split) -> Iterator[Item]:
        count = self._config.train_crops if split == "train" else self._config.validation_crops
        labelled = self._modality == "mask"
        identity = f"{_FORMAT_VERSION}/{version('scikit-image')}"
        if labelled:
            identity += f"/palette-{_PALETTE_VERSION}"
        for index in range(count):
            yield BundledItem(split, index, identity, labelled)


def region(photograph: str, split: Split, height: int, width: int) -> Box:
    """The part of a photograph that belongs to a split."""
    border = round(width * (1 - _VALIDATION_SHARE))
    if split == "validation":
        return Box(border, 0, width, height)
    if photograph == _TRAINING_ONLY:  # a point at column x of the left view is at x - disparity here
        border -= _MOTORCYCLE_MAX_DISPARITY_PIXELS
    return Box(0, 0, border, height)


def _paths() -> list[tuple[str, Path]]:
    spec = find_spec("skimage")  # found, not imported: importing takes a second
    folder = Path(spec.origin).parent / "data" if spec is not None and spec.origin else Path("scikit-image-is-missing")
    return [(name, folder / name) for name in PHOTOGRAPHS]


@lru_cache(maxsize=len(PHOTOGRAPHS))
def _photograph(name: str) -> Picture:
    from piti.data.sources.pictures import decode_picture

    return decode_picture(dict(_paths())[name].read_bytes())
