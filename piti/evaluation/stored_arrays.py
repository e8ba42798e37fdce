"""Features and distances, stored so that networks compute them once: <root>/features/<fingerprint>.npy."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
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

    def get(self, about: Mapping[str, Any], compute: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """The array that `about` (JSON-able) describes: read, or else computed and kept. A damaged file is replaced."""
        uri = storage.join(self._folder, f"{fingerprint(about)[:32]}.npy")
        try:
            found: NDArray[Any] = np.load(io.BytesIO(storage.read_bytes(uri)), allow_pickle=False)
            return found
        except (FileNotFoundError, ValueError, EOFError):
            pass
        array = compute()
        self.num_computed += 1
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        storage.write_bytes(uri, buffer.getvalue())
        return array
