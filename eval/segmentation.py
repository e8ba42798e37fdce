"""Do pictures show what their label maps ask for? Intersection over union of a segmentation network's labels, by object size."""

from __future__ import annotations

from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from eval.pictures import Metric, NetworkIdentity

ObjectSize = Literal["all", "small", "medium", "large"]
OBJECT_SIZES: tuple[ObjectSize, ...] = get_args(ObjectSize)
# COCO's 32 and 96 pixels squared, as shares of its usual picture of 640x480: 0.33 % and 3 %.
SMALL_BELOW_SHARE, LARGE_ABOVE_SHARE = 32**2 / (640 * 480), 96**2 / (640 * 480)


def label_overlaps(predicted: NDArray[np.integer], wanted: NDArray[np.integer], num_classes: int) -> NDArray[np.int64]:
    """Pixels in the intersection and in the union of two label maps (H,W), for each size and class: (4, 2, num_classes).

    Sizes are those of `OBJECT_SIZES`. An object is a connected area of one label in `wanted`; pixels whose wanted label
    is not below `num_classes` do not count. A predicted area that goes beyond the objects it touches is held against
    their sizes, and one that touches none against its own size, as in COCO's evaluation.
    Raises ValueError for maps of different shapes.
    """
    if predicted.shape != wanted.shape:
        raise ValueError(f"label maps differ in shape: {predicted.shape} and {wanted.shape}")
    known = wanted < num_classes
    counts = np.zeros((len(OBJECT_SIZES), 2, num_classes), dtype=np.int64)
    for label in np.union1d(wanted[known], predicted[known]):
        if 0 <= label < num_classes:
            counts[:, :, label] = _overlaps_of_label((predicted == label) & known, wanted == label)
    return counts


def mean_iou(overlaps: NDArray[np.int64], size: ObjectSize, network: NetworkIdentity, note: str = "") -> Metric | None:
    """Mean over classes of intersection over union, counted over all pictures: overlaps (N, 4, 2, C), see above.

    1 is best. None if there are no objects of that size. `note` is added to what has to be borne in mind.
    """
    intersection, union = overlaps[:, OBJECT_SIZES.index(size)].sum(axis=0)
    present = union > 0
    if not present.any():
        return None
    name = "miou" if size == "all" else f"miou_{size}"
    words = f"{np.count_nonzero(present)} classes occur; no interval, since classes share pictures"
    value = float((intersection[present] / union[present]).mean())
    return Metric(f"{name}_{network.slug}", value, note="; ".join(filter(None, (words, note))), network=network)


def _overlaps_of_label(predicted: NDArray[np.bool_], wanted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(4, 2) of one label's masks."""
    objects, object_sizes = _areas(wanted)
    found, found_sizes = _areas(predicted)
    size_here = object_sizes[objects]  # 0 outside of objects
    touches = np.zeros((len(found_sizes), len(OBJECT_SIZES)), dtype=bool)
    touches[found, size_here] = True
    lonely = ~touches[:, 1:].any(axis=1)
    touches[lonely, found_sizes[lonely]] = True
    beyond = predicted & ~wanted
    counts = [[np.count_nonzero(predicted & wanted), np.count_nonzero(predicted | wanted)]]
    for size in range(1, len(OBJECT_SIZES)):
        mine = size_here == size
        union = np.count_nonzero(mine) + np.count_nonzero(beyond & touches[found, size])
        counts.append([np.count_nonzero(mine & predicted), union])
    return np.array(counts)


def _areas(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The number of each pixel's connected area (H,W), 0 for none, and the size (1 to 3) of each number, (A,)."""
    _, numbers, facts, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    shares = facts[:, cv2.CC_STAT_AREA] / mask.size
    sizes = 1 + (shares >= SMALL_BELOW_SHARE).astype(np.int64) + (shares > LARGE_ABOVE_SHARE)
    sizes[0] = 0
    return np.asarray(numbers, dtype=np.int32), sizes
