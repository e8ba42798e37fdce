"""Datasets that tests make: arrays as the files in which datasets hold them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_values(path: Path, values: np.ndarray) -> None:
    """As `.npy`, or as a picture of the kind that the suffix tells; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path)
