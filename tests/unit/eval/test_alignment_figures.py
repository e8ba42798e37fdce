"""Figures of agreement with what was asked for, against torchmetrics, SciPy and pictures counted by hand."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from eval import depth_order_error, edge_agreement, label_overlaps, mean_iou, normal_error_degrees
from eval.pictures import NetworkIdentity
from eval.torchvision_operators import ensure_torchvision_importable

NETWORK = NetworkIdentity("segmenter.pt", "0a1b2c3d", "0a1b2c3d" * 8, False, "none")


def patches(seed: int) -> np.ndarray:
    """A random label map of connected areas, with 5 labels."""
    noise = np.random.default_rng(seed).normal(size=(5, 96, 96))
    return np.argmax([gaussian_filter(plane, 4) for plane in noise], axis=0)


def test_mean_iou_is_torchmetrics_jaccard_index() -> None:
    """Over three pictures, with unlabelled pixels left out: 1e-6."""
    ensure_torchvision_importable()
    from torchmetrics.functional.classification import multiclass_jaccard_index

    predicted = np.stack([patches(seed) for seed in (1, 2, 3)])
    wanted = np.where(np.random.default_rng(0).random(predicted.shape) < 0.3, predicted, patches(9))
    wanted[:, :7] = 255
    overlaps = np.stack([label_overlaps(a, b, 5) for a, b in zip(predicted, wanted, strict=True)])
    metric = mean_iou(overlaps, "all", NETWORK)
    reference = multiclass_jaccard_index(
        torch.from_numpy(predicted), torch.from_numpy(wanted), num_classes=5, average="macro", ignore_index=255
    )
    assert metric is not None
    assert metric.name == "miou_0a1b2c3d"
    assert metric.value == pytest.approx(float(reference), rel=1e-6)


def test_objects_are_measured_by_their_size() -> None:
    """Counted by hand on 100x100 pixels: small is below 33.3, large above 300; what goes beyond an object is held
    against its size, what touches none against its own."""
    wanted = np.zeros((100, 100), dtype=np.int64)
    wanted[10:15, 10:15] = 1  # 25 pixels: small
    wanted[40:50, 40:50] = 1  # 100: medium
    wanted[60:90, 60:90] = 1  # 900: large
    predicted = np.zeros_like(wanted)
    predicted[10:15, 10:20] = 1  # the small one and 25 pixels beyond
    predicted[60:90, 60:75] = 1  # half of the large one
    predicted[0:3, 90:93] = 1  # 9 pixels of nothing: small
    overlaps = label_overlaps(predicted, wanted, 2)
    assert overlaps[:, :, 1].tolist() == [[25 + 450, 1025 + 25 + 9], [25, 25 + 25 + 9], [0, 100], [450, 900]]
    small = mean_iou(overlaps[None, :, :, 1:], "small", NETWORK)
    assert small is not None
    assert small.name == "miou_small_0a1b2c3d"
    assert small.value == pytest.approx(25 / 59)
    assert mean_iou(np.zeros((1, 4, 2, 3), dtype=np.int64), "small", NETWORK) is None
    with pytest.raises(ValueError, match="differ in shape"):
        label_overlaps(predicted[:50], wanted, 2)


def test_losing_small_objects_shows_where_the_whole_hardly_changes() -> None:
    wanted = np.zeros((100, 100), dtype=np.int64)
    wanted[50:] = 1
    wanted[10:14, 10:14] = 1
    predicted = wanted.copy()
    predicted[10:14, 10:14] = 0
    overlaps = label_overlaps(predicted, wanted, 2)[None]
    values = {size: mean_iou(overlaps, size, NETWORK) for size in ("all", "small", "large")}  # type: ignore[arg-type]
    assert values["all"].value > 0.99  # type: ignore[union-attr]
    assert overlaps[0, 1, :, 1].tolist() == [0, 16]
    assert values["large"].value > 0.99  # type: ignore[union-attr]


def test_edges_agree_within_the_tolerance_and_no_farther() -> None:
    """A line moved by 1 pixel of 256 agrees (the tolerance is 2.7), moved by 5 does not; half a line has recall 1/2."""
    line = np.zeros((256, 256), dtype=np.uint8)
    line[100] = 255
    empty = np.zeros_like(line)
    half = line.copy()
    half[:, 128:] = 0
    assert edge_agreement(line, line) == 1
    assert edge_agreement(np.roll(line, 1, axis=0), line) == 1
    assert edge_agreement(np.roll(line, 5, axis=0), line) == 0
    assert edge_agreement(half, line) == pytest.approx(2 / 3, abs=0.01)
    assert (edge_agreement(empty, line), edge_agreement(empty, empty)) == (0, 1)
    with pytest.raises(ValueError, match="differ in shape"):
        edge_agreement(line[:9], line)


def test_the_order_of_depths_is_what_kendalls_tau_counts() -> None:
    """Of all pairs tau = 1 - 2 x error; 4096 pairs come within 4 standard errors. Any rising transform changes nothing."""
    from scipy.stats import kendalltau

    rng = np.random.default_rng(1)
    wanted = rng.random((32, 32))
    found = wanted + 0.4 * rng.normal(size=wanted.shape)
    known = np.ones_like(wanted, dtype=bool)
    error = depth_order_error(found, wanted, known)
    expected = (1 - kendalltau(found.ravel(), wanted.ravel()).statistic) / 2
    assert error == pytest.approx(expected, abs=4 * math.sqrt(expected / 4096) + 0.01)  # 0.01: nearly equal depths
    assert depth_order_error(np.exp(3 * found) + 7, wanted, known) == error
    assert depth_order_error(wanted, wanted, known) == 0
    assert depth_order_error(-wanted, wanted, known) == 1
    assert depth_order_error(np.zeros_like(wanted), wanted, known) == 1  # says nothing of any pair
    known[:] = False
    assert math.isnan(depth_order_error(found, wanted, known))


def test_unknown_depths_do_not_count() -> None:
    wanted = np.random.default_rng(2).random((40, 40))
    found = wanted.copy()
    found[:20] = 0.5 - found[:20]
    known = np.ones_like(wanted, dtype=bool)
    assert depth_order_error(found, wanted, known) > 0.2
    known[:20] = False
    assert depth_order_error(found, wanted, known) == 0


def test_the_angle_between_normals_is_scipys() -> None:
    from scipy.spatial.transform import Rotation

    field = np.random.default_rng(3).normal(size=(8, 8, 3))
    axis = np.cross(field, [0.3, -0.2, 0.9])
    axis /= np.linalg.norm(axis, axis=2, keepdims=True)
    turned = Rotation.from_rotvec(np.radians(25) * axis.reshape(-1, 3)).apply(field.reshape(-1, 3)).reshape(8, 8, 3)
    known = np.ones((8, 8), dtype=bool)
    assert normal_error_degrees(4 * turned, field, known) == pytest.approx(25, abs=1e-6)
    known[:, 4:] = False
    turned[:, 4:] = math.nan
    assert normal_error_degrees(turned, field, known) == pytest.approx(25, abs=1e-6)
    assert math.isnan(normal_error_degrees(turned, field, np.zeros((8, 8), dtype=bool)))
