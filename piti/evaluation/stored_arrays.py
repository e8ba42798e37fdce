"""Features and distances, stored so that networks compute them once: <root>/features/<fingerprint>.npy."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from piti import storage
from piti.plan import fingerprint


class StoredArrays:
    """Arrays by a description of all that their values depend on."""

    def __init__(self, root: str) -> None:
        self._folder = storage.join(root, "features")
        self.num_computed = 0

    def read(self, about: Mapping[str, Any]) -> NDArray[Any] | None:
        """The array that `about` (JSON-able) describes; None where it is not there or damaged."""
        try:
            found: NDArray[Any] = np.load(io.BytesIO(storage.read_bytes(self._uri(about))), allow_pickle=False)
        except (FileNotFoundError, ValueError, EOFError):
            return None
        return found

    def write(self, about: Mapping[str, Any], array: NDArray[Any]) -> None:
        """Keep an array that was computed."""
        self.num_computed += 1
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        storage.write_bytes(self._uri(about), buffer.getvalue())

    def _uri(self, about: Mapping[str, Any]) -> str:
        return storage.join(self._folder, f"{fingerprint(about)[:32]}.npy")
