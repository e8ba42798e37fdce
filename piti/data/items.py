"""What every dataset adapter offers: a listing that is cheap, and items that load one by one.

Nothing here imports numpy or torch at run time: configs and plans import this file, and must stay quick.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from piti.errors import PitiError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")


class RejectedItem(Exception):  # noqa: N818 - an outcome of loading that is recorded, not a failure of the program
    """An item that cannot become a sample. `str()` is the reason that the manifest records."""


class FilteredItem(RejectedItem):
    """A good item that the config leaves out. `str()` says why; it does not count as unusable."""


@dataclass(frozen=True)
class RawCondition:
    """A condition as measured, before rendering.

    `values` (H, W) by modality: mask, label ids uint8 or uint16; sketch, edges uint8 (255 on an edge, else 0);
    geometry, depth in metres float32 with 0 where unknown. `normals`: geometry only, float32 (H, W, 3) unit vectors
    in camera axes (x to the right), all zero where unknown; None where the dataset has none.
    """

    values: NDArray[Any]
    normals: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class LoadedItem:
    """One photograph with its condition.

    `image`: upright RGB, uint8 (H, W, 3). `condition`: None where a sketch is still to be detected. `original` is the
    picture's file content and suffix if decoding it gives exactly `image` without further handling, so that it may be
    stored as it is. `lossy` says that the file was compressed with loss. `provenance` is JSON-able. `oddity`: what is
    implausible about the condition, and which key to look at; None mostly.
    """

    image: NDArray[np.uint8]
    condition: RawCondition | None
    provenance: dict[str, Any] = field(default_factory=dict)
    original: tuple[bytes, str] | None = None
    lossy: bool = False
    oddity: str | None = None


class Item(Protocol):
    """One thing a source found. Small and picklable: it travels to the worker that loads it."""

    @property
    def key(self) -> str:
        """Unique in the source; letters, digits, `-` and `_` only, at most 80 of them."""

    @property
    def origin(self) -> str:
        """Where it comes from, for people: a path relative to the dataset, or a name."""

    @property
    def identity(self) -> str:
        """Changes whenever the item's content may have changed (size and time of its files, say)."""

    @property
    def is_remote(self) -> bool:
        """Whether loading it asks a server."""

    def load(self) -> LoadedItem:
        """Read it. Raises RejectedItem with the reason where it is unusable."""


class Source(Protocol):
    """A dataset as it is distributed."""

    def fingerprint(self, splits: Sequence[Split] = SPLITS) -> str:
        """Changes whenever the content of these splits may have changed; reads listings, no pixels."""

    def problems(self, splits: Sequence[Split] = SPLITS) -> list[PitiError]:
        """What would stop this source from giving samples of these splits, found in seconds."""

    def items(self, split: Split) -> Iterator[Item]:
        """Everything found for a split, unusable items included, in a fixed order."""
