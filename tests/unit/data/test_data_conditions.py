"""Conditions look as in the published code, and survive storage, mirroring and looking at."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from skimage import data

from piti.data.conditions import (
    StoredCondition,
    condition_picture,
    edge_distance,
    encode_condition,
    encode_depth,
    encode_normals,
    label_colors,
    levels,
    paint_condition,
    unit_range,
)
from piti.data.items import RawCondition

GOLDEN = Path(__file__).parent / "golden"
Maker = Callable[[str, tuple[int, ...]], torch.Tensor]


# sha256 of labelcolormap(n).tobytes() of PITI's preprocess/preprocess_mask.py at commit d9f748122dc26ee926807fea42db41a9731ae140.
@pytest.mark.parametrize(
    ("num_classes", "sha256"),
    [
        (182, "db92162605db7e35d677db2f66dc36c1a9dc2d6f00a9c68b6dac04b2b6dae07a"),
        (150, "eed5e97322563eb9620251dd0a880836e117f0f2f5971aa0b8b16d295a1a882c"),
    ],
)
def test_label_colours_are_the_published_ones(num_classes: int, sha256: str) -> None:
    assert hashlib.sha256(label_colors(num_classes).tobytes()).hexdigest() == sha256


def test_masks_are_coloured_and_unlabelled_is_black() -> None:
    labels = np.array([[0, 1, 181], [255, 182, 7]], dtype=np.uint8)
    painted = paint_condition(StoredCondition(labels), "mask", 182).transpose(1, 2, 0)
    assert painted[0].tolist() == [[128, 0, 0], [0, 128, 0], label_colors(182)[181].tolist()]
    assert painted[1].tolist() == [[0, 0, 0], [0, 0, 0], [64, 0, 0]]
    wide = StoredCondition(labels.astype(np.uint16))
    assert np.array_equal(paint_condition(wide, "mask", 182), paint_condition(StoredCondition(labels), "mask", 182))
    np.testing.assert_array_equal(condition_picture(painted.transpose(2, 0, 1), "mask"), painted)


@pytest.mark.parametrize("density", [0.0, 0.0001, 0.01, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (64, 64), (257, 311)])
def test_distances_are_those_of_the_published_code(shape: tuple[int, int], density: float) -> None:
    """The published definition: L1 distance transform with mask 3 of the inverted edges, in float, clipped to 255."""
    rng = np.random.default_rng(0)
    edges = np.where(rng.random(shape) < density, np.uint8(255), rng.integers(0, 255, shape, dtype=np.uint8))
    expected = np.clip(cv2.distanceTransform(255 - edges, cv2.DIST_L1, 3), 0, 255)
    np.testing.assert_array_equal(edge_distance(edges), expected)


def test_sketches_are_city_block_distances_to_the_nearest_edge() -> None:
    rng = np.random.default_rng(0)
    edges = np.where(rng.random((40, 300)) < 0.002, np.uint8(255), np.uint8(0))
    edges[:, 40:] = 0
    edges[5, 5] = 255
    rows, columns = np.nonzero(edges)
    y, x = np.mgrid[:40, :300]
    brute = (np.abs(y[..., None] - rows) + np.abs(x[..., None] - columns)).min(axis=2)
    assert brute.max() > 255
    rendered = paint_condition(StoredCondition(edges), "sketch")
    assert rendered.shape == (1, 40, 300)
    np.testing.assert_array_equal(rendered[0], np.clip(brute, 0, 255))
    picture = condition_picture(rendered, "sketch")
    np.testing.assert_array_equal(picture[..., 1], 255 - edges)


def test_a_sketch_is_rendered_as_published() -> None:
    green = data.astronaut()[::8, ::8, 1].astype(int)
    edges = np.zeros((64, 64), dtype=np.uint8)
    edges[:, 1:][np.abs(np.diff(green, axis=1)) > 120] = 255
    expected = np.load(GOLDEN / "sketch-condition.npy")
    rendered = unit_range(torch.from_numpy(paint_condition(StoredCondition(edges), "sketch")))
    np.testing.assert_allclose(rendered.numpy(), expected, rtol=0, atol=1e-6)


@pytest.fixture
def painted_geometry(normal: Maker, uniform: Maker) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the golden vectors' scene: what is painted here, what the published code painted, where depth is known."""
    depth = np.exp(1.2 + 1.1 * normal("depth", (48, 64)).numpy()) + 10 * (1 + uniform("far", (48, 64)).numpy())
    known = uniform("known", (48, 64)).numpy() > -0.8
    normals = normal("normals", (48, 64, 3)).numpy()
    normals = normals / np.linalg.norm(normals, axis=2, keepdims=True)
    normals[:6, :9] = 0
    raw = RawCondition(np.where(known, depth, 0).astype(np.float32), normals.astype(np.float32))
    painted = paint_condition(encode_condition(raw, "geometry"), "geometry")
    return painted.astype(int), np.load(GOLDEN / "geometry-condition.npy").astype(int), known


def test_depth_is_painted_as_published(painted_geometry: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    """Stored codes are rounded to 16 bits: a pixel between two of the 256 colours may have its neighbour, 1 in 300."""
    painted, published, known = painted_geometry
    assert (painted[3:] == published[3:]).all(axis=0).mean() > 1 - 1 / 300
    assert np.abs(painted[3:] - published[3:]).max() <= 4, "not a neighbouring colour"
    assert (painted[3:, ~known] == 0).all()


def test_normals_are_painted_as_published(painted_geometry: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    """To one level of 255, as stored codes are rounded to 16 bits, and to the very level nearly everywhere."""
    painted, published, _ = painted_geometry
    assert np.abs(painted[:3] - published[:3]).max() <= 1
    assert (painted[:3] == published[:3]).mean() > 0.99
    assert (painted[:3, :6, :9] == 0).all()


def test_without_normals_their_channels_are_black() -> None:
    stored = encode_condition(RawCondition(np.full((4, 5), 2.0, np.float32)), "geometry")
    assert (paint_condition(stored, "geometry")[:3] == 0).all()


def test_masks_are_painted_as_published(uniform: Maker) -> None:
    """Labels beyond the classes included: black."""
    labels = (128 * (uniform("labels", (24, 32)).numpy() + 1)).astype(np.uint8)
    assert labels.max() > 182
    painted = paint_condition(StoredCondition(labels), "mask", 182)
    np.testing.assert_array_equal(painted, np.load(GOLDEN / "mask-condition.npy"))


def test_depth_codes_mark_what_is_not_a_distance() -> None:
    depth = np.full((20, 20), 3.0)
    depth[0, :4] = [np.nan, np.inf, -1.0, 0.0]
    codes = encode_depth(depth)
    assert (codes[0, :4] == 0).all()
    assert (codes[1:] > 0).all()
    assert (encode_depth(np.zeros((4, 4))) == 0).all()


def test_depth_codes_clip_near_and_far() -> None:
    depth = np.linspace(0.1, 1000, 10_000).reshape(100, 100)
    codes = encode_depth(depth)
    assert codes[depth >= 300].min() == codes.max()
    assert codes[depth <= 0.5].max() == 1


def test_mirroring_turns_normals_round() -> None:
    rng = np.random.default_rng(3)
    normals = rng.normal(size=(6, 7, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    normals[0, 0] = 0
    stored = StoredCondition(encode_depth(np.ones((6, 7))), encode_normals(normals))
    mirrored = normals[:, ::-1] * np.array([-1, 1, 1], np.float32)
    assert stored.flipped().normals is not None
    np.testing.assert_allclose(
        stored.flipped().normals.astype(int), encode_normals(mirrored).astype(int), atol=1  # type: ignore[union-attr]
    )  # fmt: skip
    np.testing.assert_array_equal(stored.flipped().flipped().normals, stored.normals)
    np.testing.assert_array_equal(stored.flipped().values, stored.values[:, ::-1])


def test_8_bit_levels_come_back_from_the_unit_range() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(levels(unit_range(every)), every)
    nearest = torch.tensor([-2.0, -1 + 0.4 / 127.5, -1 + 0.6 / 127.5, 0.999, 2.0])
    assert levels(nearest).tolist() == [0, 0, 1, 255, 255]
