"""The published code's own results, recorded in golden/ (its README says how), against ours."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from skimage import data

from degradations import apply_recipe, draw_recipe, kernels, l0_smooth, operations

GOLDEN = Path(__file__).parent / "golden"
ASTRONAUT = data.astronaut()
CROP = operations.from_uint8(ASTRONAUT[96:132, 200:250])
HALF_A_LEVEL = 0.5 / 255


@pytest.fixture(scope="module")
def published() -> dict[str, NDArray[np.generic]]:
    with np.load(GOLDEN / "operations.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize(
    ("index", "parameters"),
    list(enumerate([(5, 0.3, 1.7, 0.2), (10, 2.2, 0.5, 1.1), (14, 1.1, 2.0, 0.05), (25, 0.8, 7.5, 1.5)])),
)
def test_anisotropic_blur(
    published: dict[str, NDArray[np.generic]], index: int, parameters: tuple[int, float, float, float]
) -> None:
    kernel = kernels.anisotropic_gaussian(*parameters)
    np.testing.assert_allclose(kernel, published[f"anisotropic_{index}"], atol=1e-12)
    blurred = operations.blur_anisotropic(CROP, *parameters)
    np.testing.assert_allclose(blurred, published[f"anisotropic_blur_{index}"], atol=HALF_A_LEVEL / 5)


@pytest.mark.parametrize(("index", "parameters"), list(enumerate([(5, 0.3), (6, 0.65), (7, 0.12), (21, 2.7)])))
def test_isotropic_blur(published: dict[str, NDArray[np.generic]], index: int, parameters: tuple[int, float]) -> None:
    kernel = kernels.isotropic_gaussian(*parameters)
    np.testing.assert_allclose(kernel, published[f"isotropic_{index}"], atol=1e-12)
    blurred = operations.blur_isotropic(CROP, *parameters)
    np.testing.assert_allclose(blurred, published[f"isotropic_blur_{index}"], atol=HALF_A_LEVEL / 5)


@pytest.mark.parametrize(("index", "parameters"), list(enumerate([(0.15, 4), (2.3, 4), (1.1, 2), (4.5, 8), (0.9, 3)])))
def test_subsampling(published: dict[str, NDArray[np.generic]], index: int, parameters: tuple[float, int]) -> None:
    low = operations.subsample_shifted_gaussian(CROP, *parameters)
    np.testing.assert_allclose(low, published[f"subsampled_{index}"], atol=HALF_A_LEVEL / 5)


def test_bicubic_halving(published: dict[str, NDArray[np.generic]]) -> None:
    np.testing.assert_allclose(operations.halve_bicubic(CROP), published["halved"], atol=HALF_A_LEVEL / 5)


@pytest.mark.parametrize(("index", "lam"), list(enumerate([0.0012, 0.002, 0.004])))
def test_l0_smoothing(published: dict[str, NDArray[np.generic]], index: int, lam: float) -> None:
    """Within a level for 99.9 % of values: the published code truncates where ours rounds, and wraps where ours clips."""
    apart = np.abs(l0_smooth(ASTRONAUT[60:124, 150:230], lam).astype(int) - published[f"l0_{index}"].astype(int))
    assert np.mean(apart <= 1) >= 0.999


def statistics(picture: NDArray[np.uint8], low: NDArray[np.uint8]) -> tuple[float, float]:
    """PSNR to the plainly shrunk picture and high-frequency energy, both in dB, as golden/README.md defines them."""
    plain = cv2.resize(picture, low.shape[1::-1], interpolation=cv2.INTER_AREA).astype(np.float64)
    error = max(float(np.mean((plain - low) ** 2)), 1e-3)
    grey = low @ np.array([0.299, 0.587, 0.114])
    laplacian = 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    return 10 * np.log10(255**2 / error), 10 * np.log10(np.mean(laplacian**2) + 1e-2)


@pytest.mark.parametrize(("recipe", "draws"), [("light", 900), ("full", 600)])
def test_whole_recipes_degrade_as_the_published_ones_do(recipe: str, draws: int) -> None:
    """Two-sample Kolmogorov-Smirnov at the 1 % level, for distortion and for high-frequency energy."""
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
