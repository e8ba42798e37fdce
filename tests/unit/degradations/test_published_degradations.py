"""The published code's own results, recorded in golden/ (its README says how), against ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from skimage import data

from degradations import Recipe, apply_recipe, draw_recipe, kernels, l0_smooth, operations

GOLDEN = Path(__file__).parent / "golden"
ASTRONAUT = data.astronaut()
CROP = operations.from_uint8(ASTRONAUT[96:132, 200:250])
HALF_A_LEVEL = 0.5 / 255
RECIPES = [Recipe.from_json(line) for line in (GOLDEN / "recipes.jsonl").read_text().splitlines()]

Arrays = dict[str, NDArray[np.generic]]


@pytest.fixture(scope="module")
def published() -> Arrays:
    with np.load(GOLDEN / "operations.npz") as arrays, np.load(GOLDEN / "steps.npz") as others:
        return {**arrays, **others}


def assert_same(ours: NDArray[np.generic], theirs: NDArray[np.generic], levels: int = 1) -> None:
    """Within `levels` of 255 for 99.9 % of the values, both given as levels."""
    assert ours.shape == theirs.shape
    apart = np.abs(ours.astype(int) - theirs.astype(int))
    assert np.mean(apart <= levels) >= 0.999, f"up to {apart.max()} levels apart"


@pytest.mark.parametrize(
    ("index", "parameters"),
    list(enumerate([(5, 0.3, 1.7, 0.2), (10, 2.2, 0.5, 1.1), (14, 1.1, 2.0, 0.05), (25, 0.8, 7.5, 1.5)])),
)
def test_anisotropic_blur(published: Arrays, index: int, parameters: tuple[int, float, float, float]) -> None:
    kernel = kernels.anisotropic_gaussian(*parameters)
    np.testing.assert_allclose(kernel, published[f"anisotropic_{index}"], atol=1e-12)
    blurred = operations.blur_anisotropic(CROP, *parameters)
    np.testing.assert_allclose(blurred, published[f"anisotropic_blur_{index}"], atol=HALF_A_LEVEL / 5)


@pytest.mark.parametrize(("index", "parameters"), list(enumerate([(5, 0.3), (6, 0.65), (7, 0.12), (21, 2.7)])))
def test_isotropic_blur(published: Arrays, index: int, parameters: tuple[int, float]) -> None:
    row = kernels.gaussian_row(*parameters)
    np.testing.assert_allclose(np.outer(row, row), published[f"isotropic_{index}"], atol=1e-12)
    blurred = operations.blur_isotropic(CROP, *parameters)
    np.testing.assert_allclose(blurred, published[f"isotropic_blur_{index}"], atol=HALF_A_LEVEL / 5)


@pytest.mark.parametrize(("index", "parameters"), list(enumerate([(0.15, 4), (2.3, 4), (1.1, 2), (4.5, 8), (0.9, 3)])))
def test_subsampling(published: Arrays, index: int, parameters: tuple[float, int]) -> None:
    low = operations.subsample_shifted_gaussian(CROP, *parameters)
    np.testing.assert_allclose(low, published[f"subsampled_{index}"], atol=HALF_A_LEVEL / 5)


def test_bicubic_halving(published: Arrays) -> None:
    np.testing.assert_allclose(operations.halve_bicubic(CROP), published["halved"], atol=HALF_A_LEVEL / 5)


@pytest.mark.parametrize(("index", "lam"), list(enumerate([0.0012, 0.002, 0.004])))
def test_l0_smoothing(published: Arrays, index: int, lam: float) -> None:
    """Within a level for 99.9 % of values: the published code truncates where ours rounds, and wraps where ours clips."""
    assert_same(l0_smooth(ASTRONAUT[60:124, 150:230], lam), published[f"l0_{index}"])


def picture_of(name: str, published: Arrays) -> NDArray[np.uint8]:
    """The photograph of odd sides, or the grey one as the published code reads it: three equal channels."""
    if name == "odd":
        return ASTRONAUT[96:133, 200:251]
    return np.repeat(published[name][..., None], 3, axis=2).astype(np.uint8)


def published_normals(seed: int, covariance: object = None) -> Callable[..., NDArray[np.float32]]:
    """The standard normals that numpy.random gave the published code, to take the place of ours.

    numpy's multivariate_normal and ours scale along the same axes in another order and direction; so that the same
    noise comes out, its normals are turned into our axes, which leaves them standard normals.
    """
    turn = np.eye(3)
    if covariance is not None:
        _, spread, axes = np.linalg.svd(np.asarray(covariance))
        theirs = np.sqrt(spread)[:, None] * axes
        variances, ours = np.linalg.eigh(np.asarray(covariance))
        turn = theirs @ np.linalg.inv(np.sqrt(np.abs(variances))[:, None] * ours.T)
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-6)

    def draw(_: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        normals = np.random.RandomState(seed).standard_normal(shape)
        return np.asarray(normals @ turn if shape[2] == 3 else normals, dtype=np.float32)

    return draw


@pytest.mark.parametrize("name", ["odd", "grey"])
@pytest.mark.parametrize("quality", [30, 80, 95])
def test_jpeg(published: Arrays, name: str, quality: int) -> None:
    image = operations.from_uint8(picture_of(name, published))
    assert_same(operations.to_uint8(operations.jpeg(image, quality)), published[f"{name}_jpeg_{quality}"])


@pytest.mark.parametrize("name", ["odd", "grey"])
@pytest.mark.parametrize(("index", "factor"), [(0, 1.3), (1, 3.7)])
@pytest.mark.parametrize("interpolation", ["linear", "cubic", "area"])
def test_resizes(published: Arrays, name: str, index: int, factor: float, interpolation: str) -> None:
    image = operations.from_uint8(picture_of(name, published))
    shrunk = operations.to_uint8(operations.shrink(image, factor, interpolation))
    assert_same(shrunk, published[f"{name}_{interpolation}_{index}"])


@pytest.mark.parametrize("name", ["odd", "grey"])
def test_noises(published: Arrays, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = operations.from_uint8(picture_of(name, published))
    monkeypatch.setattr(operations, "_normal", published_normals(41))
    assert_same(operations.to_uint8(operations.noise_colour(image, 1, 0)), published[f"{name}_noise_colour"])
    assert_same(operations.to_uint8(operations.noise_grey(image, 1, 0)), published[f"{name}_noise_grey"])
    covariance = published["covariance"].tolist()
    monkeypatch.setattr(operations, "_normal", published_normals(43, covariance))
    noisy = operations.noise_correlated(image, covariance, 0)
    assert_same(operations.to_uint8(noisy), published[f"{name}_noise_correlated"])


def test_conversions_to_and_from_levels(published: Arrays) -> None:
    """Every level, the halves between and values outside [0, 1] give the same levels; each level the same float."""
    ramp = np.arange(-64, 577, dtype=np.float32) / np.float32(510)
    np.testing.assert_array_equal(operations.to_uint8(ramp), published["levels"])
    np.testing.assert_allclose(operations.from_uint8(np.arange(256, dtype=np.uint8)), published["floats"], atol=1e-7)


@pytest.mark.parametrize("index", range(len(RECIPES)))
def test_the_same_recipe_gives_the_same_picture(published: Arrays, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole light recipes of scales 2, 3, 4, 8, told to the published code choice by choice, in its order.

    Within a level; within two where L0 smoothing, which truncates there, comes before other operations.
    """
    recipe = RECIPES[index]
    noise = next(operation for operation in recipe.operations if operation.name.startswith("noise"))
    normals = published_normals(noise.parameters["seed"], noise.parameters.get("covariance"))
    monkeypatch.setattr(operations, "_normal", normals)
    picture = picture_of("recipe_grey", published) if index % 2 else ASTRONAUT[40:141, 170:271]
    smoothed = any(operation.name == "l0" for operation in recipe.operations)
    assert_same(apply_recipe(picture, recipe), published[f"recipe_{index}"], 2 if smoothed else 1)


def test_the_recipes_hold_every_operation() -> None:
    held = {operation.name for recipe in RECIPES for operation in recipe.operations}
    assert held == set(operations.OPERATIONS) - {"camera_noise"}, "the camera is the full recipe's alone"


def statistics(picture: NDArray[np.uint8], low: NDArray[np.uint8]) -> tuple[float, float]:
    """PSNR to the plainly shrunk picture and high-frequency energy, both in dB, as golden/README.md defines them."""
    plain = cv2.resize(picture, low.shape[1::-1], interpolation=cv2.INTER_AREA).astype(np.float64)
    error = max(float(np.mean((plain - low) ** 2)), 1e-3)
    grey = low @ np.array([0.299, 0.587, 0.114])
    laplacian = 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    return 10 * np.log10(255**2 / error), 10 * np.log10(np.mean(laplacian**2) + 1e-2)


@pytest.mark.parametrize(("recipe", "draws"), [pytest.param("light", 2001, marks=pytest.mark.slow), ("full", 600)])
def test_whole_recipes_degrade_as_the_published_ones_do(recipe: str, draws: int) -> None:
    """Two-sample Kolmogorov-Smirnov at the 1 % level, for distortion and for high-frequency energy.

    With 2,001 light draws a side (667 of each photograph), distribution functions may differ by 0.051 at most.
    """
    sources = (data.astronaut(), data.coffee(), data.chelsea())
    pictures = [cv2.resize(source, (256, 256), interpolation=cv2.INTER_AREA) for source in sources]
    rng = np.random.default_rng(20)
    ours = []
    for index in range(draws):
        drawn = draw_recipe(rng, 4, recipe)  # type: ignore[arg-type]
        without_camera = tuple(operation for operation in drawn.operations if operation.name != "camera_noise")
        picture = pictures[index % len(pictures)]
        low = apply_recipe(picture, dataclasses.replace(drawn, operations=without_camera))
        ours.append(statistics(picture, low))
    theirs = np.load(GOLDEN / f"{recipe}_statistics.npy")
    for column, name in enumerate(("PSNR", "high-frequency energy")):
        result = stats.ks_2samp(np.array(ours)[:, column], theirs[:, column])
        assert result.pvalue > 0.01, f"{name} differs: D = {result.statistic:.3f}"
