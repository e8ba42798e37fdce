"""Conditions as shards store them, as the task encoder sees them (rendered as in the published code), and for people.

Stored values (`StoredCondition`) are raw: label ids, edges, or depth and normals at 16 bits. Rendering happens when a
sample is loaded: colours for masks, a distance transform for sketches, stacked pictures for geometry.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from piti.config import Modality
from piti.data.items import RawCondition, RejectedItem

_NEAREST_METRES = 0.5
_FARTHEST_METRES = 300.0
_FAR_PERCENTILE = 99
_STEPS = 65534  # 16-bit codes 1..65535 hold a value in [0, 1]; 0 means unknown


@dataclass(frozen=True)
class StoredCondition:
    """A condition as shards keep it.

    `values` (H, W): label ids uint8 or uint16; edges uint8 (0 or 255); or log depth uint16. `normals`: geometry
    only, uint16 (H, W, 3), or None where unknown. In 16-bit codes 0 means unknown and 1..65535 are 0..1, which is
    log(depth) / log(far + 1.01) or (n + 1) / 2.
    """

    values: NDArray[Any]
    normals: NDArray[np.uint16] | None = None

    def flipped(self) -> StoredCondition:
        """Mirrored left to right; the x component of each normal changes its sign with it."""
        values = np.asarray(cv2.flip(self.values, 1))
        if self.normals is None:
            return StoredCondition(values)
        normals = np.ascontiguousarray(self.normals[:, ::-1])
        across = normals[..., 0]
        normals[..., 0] = np.where(across > 0, _STEPS + 2 - across.astype(np.int32), 0).astype(np.uint16)
        return StoredCondition(values, normals)


def check_labels(labels: NDArray[Any], num_classes: int) -> None:
    """Raise RejectedItem unless all labels are below `num_classes` or 255, which means unlabelled."""
    if labels.dtype == np.uint8 and not cv2.inRange(labels, num_classes, 254).any():
        return  # the usual case, in a twentieth of the time
    found = np.unique(labels)
    wrong = found[(found >= num_classes) & (found != 255)]
    if wrong.size:
        listed = ", ".join(str(value) for value in wrong[:5])
        raise RejectedItem(f"label {listed} is outside 0..{num_classes - 1} (and not 255, unlabelled)")


def encode_condition(raw: RawCondition, modality: Modality) -> StoredCondition:
    """What shards keep of a raw condition: masks and sketches as they are, geometry as 16-bit codes."""
    if modality != "geometry":
        return StoredCondition(raw.values)
    return StoredCondition(encode_depth(raw.values), None if raw.normals is None else encode_normals(raw.normals))


def encode_depth(depth_metres: NDArray[Any]) -> NDArray[np.uint16]:
    """Depth (H, W) in metres -> log depth codes uint16; not finite or not positive means unknown.

    As published: clipped to [0.5 m, min(300 m, 99th percentile)], then the logarithm as a share of log(far + 1.01).
    The percentile counts unknown pixels as 0 m, as the published code does.
    """
    depth = np.asarray(depth_metres, dtype=np.float64)
    known = np.isfinite(depth) & (depth > 0)
    far = max(
        min(_FARTHEST_METRES, float(np.percentile(np.where(known, depth, 0.0), _FAR_PERCENTILE))), _NEAREST_METRES
    )
    share = np.log(np.clip(np.where(known, depth, _NEAREST_METRES), _NEAREST_METRES, far)) / np.log(far + 1.01)
    codes = 1 + np.rint(np.clip(share, 0.0, 1.0) * _STEPS)
    return np.where(known, codes, 0).astype(np.uint16)


def encode_normals(normals: NDArray[Any]) -> NDArray[np.uint16]:
    """Normals (H, W, 3) in [-1, 1] -> codes uint16; all zero or not finite means unknown."""
    known = np.isfinite(normals).all(axis=2, keepdims=True) & (np.abs(np.nan_to_num(normals)).sum(2, keepdims=True) > 0)
    codes = 1 + np.rint((np.clip(np.where(known, normals, 0.0), -1.0, 1.0) + 1.0) / 2.0 * _STEPS)
    return np.where(known, codes, 0).astype(np.uint16)


def unit_range(levels: Tensor) -> Tensor:
    """8-bit levels, uint8 of any shape, as float32 in [-1, 1] on the same device, contiguous."""
    return levels.to(torch.float32, memory_format=torch.contiguous_format).mul_(1 / 127.5).sub_(1)


def levels(pictures: Tensor) -> Tensor:
    """The nearest 8-bit levels, uint8, of float pictures of any shape in [-1, 1]; values beyond count as the ends."""
    return ((pictures.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def condition_picture(painted: NDArray[np.uint8], modality: Modality) -> NDArray[np.uint8]:
    """A painted condition (C, H, W) as people look at it: uint8 (H, W, 3) RGB.

    Masks in their colours; sketches as black lines on white; geometry as its coloured depth.
    """
    if modality == "sketch":
        lines = np.where(painted[0] == 0, np.uint8(0), np.uint8(255))
        return np.repeat(lines[..., None], 3, axis=2)
    channels = painted[3:6] if modality == "geometry" else painted[:3]
    return np.ascontiguousarray(channels.transpose(1, 2, 0))


@lru_cache(maxsize=8)
def label_colors(num_classes: int) -> NDArray[np.uint8]:
    """uint8 (num_classes, 3): the published colours (Pascal VOC's scheme, shifted by one so that 0 has a colour).

    Bits 0, 1, 2 of label + 1 go to the highest bit of red, green, blue; the next three bits to the next, and so on.
    """
    ids = np.arange(1, num_classes + 1, dtype=np.int64)
    colors = np.zeros((num_classes, 3), dtype=np.uint8)
    for place in range(7):
        for channel in range(3):
            bit = (ids >> (3 * place + channel)) & 1
            colors[:, channel] |= (bit << (7 - place)).astype(np.uint8)
    return colors


def paint_condition(stored: StoredCondition, modality: Modality, num_classes: int | None = None) -> NDArray[np.uint8]:
    """What the encoder sees, in 8-bit levels (see `unit_range`): uint8 (C, H, W), as the published data pipeline holds it.

    C is 3 for masks, 1 for sketches, 6 for geometry. Masks: the colour of each label, black where it is not below
    `num_classes`. Sketches: the L1 distance (mask 3) to the nearest edge, clipped to 255. Geometry: normals, then depth
    in colours; black where unknown.
    """
    if modality == "mask":
        if num_classes is None:
            raise ValueError("masks need num_classes")
        return _paint_labels(stored.values, _color_table(num_classes))
    if modality == "sketch":
        return edge_distance(stored.values)[None]
    depth = _jet()[_jet_index(stored.values)] * (stored.values > 0)[..., None].astype(np.uint8)
    normals = np.zeros_like(depth) if stored.normals is None else _paint_normals(stored.normals)
    return np.ascontiguousarray(np.concatenate([normals, depth], axis=2).transpose(2, 0, 1))


@lru_cache(maxsize=8)
def _color_table(num_classes: int) -> NDArray[np.uint8]:
    """uint8 (3, 65536): a colour for each id, so that one lookup paints a map; black beyond the classes."""
    table = np.zeros((3, 1 << 16), dtype=np.uint8)
    table[:, :num_classes] = label_colors(num_classes).T
    return table


def _paint_labels(labels: NDArray[Any], table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    painted = np.empty((3, *labels.shape), dtype=np.uint8)
    for channel, plane in zip(table, painted, strict=True):
        if labels.dtype == np.uint8:  # OpenCV looks up bytes at ten times NumPy's speed
            cv2.LUT(labels, channel[:256], dst=plane)
        else:
            np.take(channel, labels, out=plane)
    return painted


def edge_distance(edges: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 (H, W), 255 on an edge -> uint8 (H, W): steps to the nearest edge along rows and columns, at most 255.

    As published: OpenCV's distance transform of the inverted edges with the L1 distance and mask 3, clipped to 255.
    """
    elsewhere = cv2.threshold(edges, 254, 255, cv2.THRESH_BINARY_INV)[1]
    return np.asarray(cv2.distanceTransform(elsewhere, cv2.DIST_L1, 3, dstType=cv2.CV_8U), dtype=np.uint8)


def _paint_normals(codes: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """As published: (n - smallest component in the picture) / 2, black where unknown."""
    known = codes.any(axis=2, keepdims=True)
    normals = np.where(known, (codes.astype(np.float32) - 1.0) / _STEPS * 2.0 - 1.0, 0.0)
    smallest = float(normals.min())
    shown = np.clip((normals - smallest) / 2.0, 0.0, 1.0)
    return np.where(known, shown * 255.0, 0.0).astype(np.uint8)


def _jet_index(codes: NDArray[np.uint16]) -> NDArray[np.int64]:
    share = (codes.astype(np.float64) - 1.0) / _STEPS
    return np.clip(share * 256, 0, 255).astype(np.int64)


@lru_cache(maxsize=1)
def _jet() -> NDArray[np.uint8]:
    """uint8 (256, 3): 256 colours from dark blue over green to dark red, in which the published code paints depth."""
    from matplotlib import colormaps  # which geometry alone needs

    return np.asarray(colormaps["jet"](np.arange(256), bytes=True)[:, :3], dtype=np.uint8)
