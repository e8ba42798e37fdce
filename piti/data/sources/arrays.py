"""Label, depth and normal maps stored as NumPy files (`.npy`), checked before anything relies on them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from piti.data.items import RejectedItem


def decode_depth(data: bytes) -> NDArray[np.float32]:
    """Depth (H, W) in metres from (H, W) or (H, W, 1); 0 means unknown, as does what is not finite or not positive.

    Raises RejectedItem where the file is no such array.
    """
    depth = _plane(_load(data, "depth"), "depth").astype(np.float32)
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))


def decode_validity(data: bytes) -> NDArray[np.bool_]:
    """Where a depth map counts, bool (H, W), from (H, W) or (H, W, 1). Raises RejectedItem."""
    values = _plane(_load(data, "depth mask"), "depth mask")
    return np.asarray(np.nan_to_num(values.astype(np.float32)) > 0)


def where_valid(depth: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Depth with 0 wherever it is not valid. Raises RejectedItem where the sizes differ."""
    if depth.shape != valid.shape:
        raise RejectedItem(
            f"depth is {depth.shape[1]}x{depth.shape[0]} pixels, its mask {valid.shape[1]}x{valid.shape[0]}"
        )
    return np.where(valid, depth, np.float32(0))


def decode_normals(data: bytes) -> NDArray[np.float32]:
    """Normals (H, W, 3) in [-1, 1]; all zero means unknown, as does what is not finite. Raises RejectedItem."""
    normals = _load(data, "normal map")
    if normals.ndim != 3 or normals.shape[2] != 3:
        raise RejectedItem(f"normal map has shape {normals.shape}, not (height, width, 3)")
    normals = normals.astype(np.float32)
    known = np.isfinite(normals).all(axis=2, keepdims=True)
    return np.where(known, normals, np.float32(0))


def decode_labels(data: bytes) -> NDArray[Any]:
    """Label ids (H, W), uint8 or uint16. Raises RejectedItem where the file is no such array."""
    labels = _plane(_load(data, "label map"), "label map")
    if labels.dtype.kind not in "ui" or labels.min() < 0 or labels.max() > np.iinfo(np.uint16).max:
        raise RejectedItem(f"label map holds {labels.dtype} values, not label ids of 8 or 16 bits")
    return labels.astype(np.uint8 if labels.max() <= np.iinfo(np.uint8).max else np.uint16)


def _load(data: bytes, what: str) -> NDArray[Any]:
    if not data:
        raise RejectedItem(f"{what} is empty (0 bytes)")
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError, TypeError) as error:  # what numpy raises on damaged files
        raise RejectedItem(f"{what} is damaged ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fuib" or not array.size:
        raise RejectedItem(f"{what} holds no numbers")
    return array


def _plane(array: NDArray[Any], what: str) -> NDArray[Any]:
    if array.ndim == 3 and array.shape[2] == 1:
        return array[..., 0]
    if array.ndim != 2:
        raise RejectedItem(f"{what} has shape {array.shape}, not (height, width)")
    return array
