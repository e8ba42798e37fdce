"""Each degradation against a plain float64 statement of what it does, within one level of 255."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from skimage import data

from degradations import camera, kernels, l0_smooth, operations

LEVEL = 1 / 255
PHOTOGRAPH = operations.from_uint8(data.astronaut()[90:158, 170:261])
FLAT = np.full((200, 200, 3), 0.5, dtype=np.float32)


def convolve(image: NDArray[np.float32], kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    return ndimage.convolve(image.astype(np.float64), kernel[..., None], mode="mirror")


def gaussian_by_density(size: int, covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    middle = (size - 1) / 2
    precision = np.linalg.inv(covariance)
    kernel = np.empty((size, size))
    for y in range(size):
        for x in range(size):
            offset = np.array([x - middle, y - middle])
            kernel[y, x] = np.exp(-0.5 * offset @ precision @ offset)
    return kernel / kernel.sum()


@pytest.mark.parametrize("size", [5, 6, 9, 14, 25])
@pytest.mark.parametrize(("theta", "l1", "l2"), [(0.3, 2.0, 0.4), (2.5, 0.3, 1.1), (np.pi / 2, 8.0, 1.0)])
def test_anisotropic_blur(size: int, theta: float, l1: float, l2: float) -> None:
    axis = np.array([np.cos(theta), np.sin(theta)])
    across = np.array([-np.sin(theta), np.cos(theta)])
    kernel = gaussian_by_density(size, l1 * np.outer(axis, axis) + l2 * np.outer(across, across))
    np.testing.assert_allclose(kernels.anisotropic_gaussian(size, theta, l1, l2), kernel, atol=1e-12)
    blurred = operations.blur_anisotropic(PHOTOGRAPH, size, theta, l1, l2)
    assert np.abs(blurred - convolve(PHOTOGRAPH, kernel)).max() < LEVEL / 4


@pytest.mark.parametrize("size", [5, 6, 7, 25])
@pytest.mark.parametrize("sigma", [0.05, 0.4, 2.8])
def test_isotropic_blur(size: int, sigma: float) -> None:
    kernel = kernels.isotropic_gaussian(size, sigma)
    if sigma > 0.1:
        np.testing.assert_allclose(kernel, gaussian_by_density(size, sigma**2 * np.eye(2)), atol=1e-12)
    assert np.abs(operations.blur_isotropic(PHOTOGRAPH, size, sigma) - convolve(PHOTOGRAPH, kernel)).max() < LEVEL / 4


def test_a_blur_narrower_than_a_pixel_keeps_the_picture_and_its_brightness() -> None:
    assert np.abs(operations.blur_isotropic(PHOTOGRAPH, 5, 0.0) - PHOTOGRAPH).max() < 1e-6
    for blurred in (
        operations.blur_isotropic(PHOTOGRAPH, 6, 1e-4),
        operations.blur_anisotropic(PHOTOGRAPH, 6, 0.3, 1e-7, 1e-7),
        operations.blur_anisotropic(PHOTOGRAPH, 7, 0.3, 0.0, 0.0),
    ):
        assert abs(float(blurred.mean() - PHOTOGRAPH.mean())) < LEVEL
    np.testing.assert_allclose(kernels.isotropic_gaussian(6, 0.001).sum(), 1)


@pytest.mark.parametrize("stride", [2, 3, 4, 8])
@pytest.mark.parametrize("sigma", [0.1, 1.3, 2.4])
def test_subsampling_with_a_shifted_gaussian(stride: int, sigma: float) -> None:
    wide = gaussian_by_density(25, sigma**2 * np.eye(2))
    grid = np.minimum(np.arange(25) + (stride - 1) / 2, 24)
    shifted = ndimage.map_coordinates(wide, np.meshgrid(grid, grid, indexing="ij"), order=1)
    shifted /= shifted.sum()
    expected = convolve(PHOTOGRAPH, shifted)[::stride, ::stride]
    low = operations.subsample_shifted_gaussian(PHOTOGRAPH, sigma, stride)
    assert low.shape == expected.shape
    assert np.abs(low - expected).max() < LEVEL / 4


def test_subsampling_keeps_the_picture_where_it_was() -> None:
    """The centre of mass of a bump, in units of the whole picture, moves by less than a tenth of a low pixel."""
    side = 96
    grid = np.arange(side)
    bump = np.exp(-((grid - 47.5) ** 2) / (2 * 9**2))
    image = np.repeat(np.outer(bump, bump)[..., None], 3, axis=2).astype(np.float32)
    for stride in (2, 3, 4):
        low = operations.subsample_shifted_gaussian(image, 1.0, stride)[..., 0]
        centre = (np.arange(low.shape[0]) * low.sum(1)).sum() / low.sum()
        assert abs((centre + 0.5) / low.shape[0] - 0.5) * low.shape[0] < 0.1


@pytest.mark.parametrize("size", [(64, 90), (63, 41), (2, 2), (9, 4)], ids=str)
def test_bicubic_halving_is_matlabs(size: tuple[int, int]) -> None:
    def weight(distance: float) -> float:
        x = abs(distance)
        if x <= 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0

    def halve_rows(image: NDArray[np.float64]) -> NDArray[np.float64]:
        rows = image.shape[0]
        halved = np.zeros((-(-rows // 2), *image.shape[1:]))
        for out in range(halved.shape[0]):
            centre = 2 * out + 0.5
            taps = range(2 * out - 4, 2 * out + 6)
            weights = np.array([weight((tap - centre) / 2) for tap in taps])
            period = [index % (2 * rows) for index in taps]
            mirrored = [index if index < rows else 2 * rows - 1 - index for index in period]
            halved[out] = np.tensordot(weights / weights.sum(), image[mirrored], axes=1)
        return halved

    image = PHOTOGRAPH[: size[0], : size[1]].astype(np.float64)
    expected = halve_rows(halve_rows(image).swapaxes(0, 1)).swapaxes(0, 1)
    halved = kernels.bicubic_halve(image.astype(np.float32))
    assert halved.shape == expected.shape
    np.testing.assert_allclose(halved, expected, atol=1e-6)
    assert operations.halve_bicubic(image.astype(np.float32)).max() <= 1


@pytest.mark.parametrize("interpolation", ["linear", "cubic", "area"])
def test_shrink_is_opencvs_resize(interpolation: str) -> None:
    code = {"linear": 1, "cubic": 2, "area": 3}[interpolation]
    expected = np.clip(cv2.resize(PHOTOGRAPH.astype(np.float64), (36, 27), interpolation=code), 0, 1)
    shrunk = operations.shrink(PHOTOGRAPH, 2.5, interpolation)
    assert shrunk.shape == (27, 36, 3)
    assert np.abs(shrunk - expected).max() < LEVEL / 4
    assert operations.shrink(PHOTOGRAPH[:3, :3], 7.9, interpolation).shape == (1, 1, 3)


@pytest.mark.parametrize("level", [1, 2, 25])
def test_noise_has_the_stated_deviation_and_correlation(level: int) -> None:
    colour = operations.noise_colour(FLAT, level, seed=1) - FLAT
    grey = operations.noise_grey(FLAT, level, seed=1) - FLAT
    for noise in (colour, grey):
        assert abs(float(noise.std()) * 255 / level - 1) < 0.02
        assert abs(float(noise.mean())) * 255 < 0.02 * level
    assert np.array_equal(grey[..., 0], grey[..., 2])
    assert np.abs(np.corrcoef(colour.reshape(-1, 3).T) - np.eye(3)).max() < 0.02


def test_correlated_noise_has_the_stated_covariance() -> None:
    covariance = (2 / 255) ** 2 * np.array([[0.6, 0.2, 0.1], [0.2, 0.4, 0.3], [0.1, 0.3, 0.5]])
    noise = (operations.noise_correlated(FLAT, covariance.tolist(), seed=4) - FLAT).reshape(-1, 3)
    np.testing.assert_allclose(np.cov(noise.T), covariance, atol=0.03 * covariance.max())


def test_noise_is_its_seed() -> None:
    first = operations.noise_colour(PHOTOGRAPH, 2, seed=9)
    assert np.array_equal(first, operations.noise_colour(PHOTOGRAPH, 2, seed=9))
    assert not np.array_equal(first, operations.noise_colour(PHOTOGRAPH, 2, seed=10))


@pytest.mark.parametrize("quality", [30, 80, 95])
def test_jpeg_is_a_jpeg_in_the_right_colours(quality: int) -> None:
    compressed = operations.jpeg(PHOTOGRAPH, quality)
    error = np.sqrt(np.mean((compressed - PHOTOGRAPH) ** 2)) * 255
    assert 0.3 < error < {30: 12, 80: 7, 95: 4}[quality]
    red = np.zeros((16, 16, 3), dtype=np.float32)
    red[..., 0] = 1
    assert np.abs(operations.jpeg(red, quality) - red).max() < 4 * LEVEL
    values = operations.jpeg(PHOTOGRAPH, quality) * 255
    np.testing.assert_allclose(values, np.rint(values), atol=1e-4)


def test_l0_on_floats_is_l0_on_levels() -> None:
    smoothed = operations.l0(PHOTOGRAPH, 0.003, 2.0)
    assert np.mean(np.abs(smoothed * 255 - l0_smooth(operations.to_uint8(PHOTOGRAPH), 0.003)) <= 1.01) > 0.999
    assert smoothed.mean() > 0.5 * PHOTOGRAPH.mean(), "the published recipe's black pictures must not come back"


CAMERA = {"camera_weights": [0.1, 0.2, 0.3, 0.4], "gain": 1.2, "red_gain": 2.0, "blue_gain": 1.7}


def test_camera_without_noise_gives_a_smooth_picture_back() -> None:
    ramp = np.linspace(0.1, 0.6, 64, dtype=np.float32)
    picture = np.stack(
        [ramp[:, None] + 0 * ramp, 0.5 * ramp[:, None] + 0.5 * ramp, 0.2 + 0 * ramp[:, None] + ramp / 2], -1
    )
    developed = camera.camera_noise(picture, **CAMERA, shot_noise=0, read_noise=0, seed=0)
    assert np.abs(developed - picture)[3:-3, 3:-3].max() < LEVEL
    assert np.abs(developed - picture).max() < 8 * LEVEL


def test_camera_noise_grows_with_its_levels_and_with_light() -> None:
    def deviation(level: float, shot: float, read: float) -> float:
        flat = np.full((64, 64, 3), level, dtype=np.float32)
        noisy = camera.camera_noise(flat, **CAMERA, shot_noise=shot, read_noise=read, seed=3)
        return float(noisy.std())

    assert deviation(0.5, 0.01, 0.0) > 2 * deviation(0.5, 0.001, 0.0) > 0
    assert deviation(0.5, 0.0, 1e-4) > 2 * deviation(0.5, 0.0, 1e-6) > 0


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 5), (64, 33)], ids=str)
def test_every_operation_takes_any_size(size: tuple[int, int]) -> None:
    image = np.ascontiguousarray(PHOTOGRAPH[: size[0], : size[1]])
    calls = {
        "blur_isotropic": {"size": 7, "sigma": 1.0},
        "blur_anisotropic": {"size": 14, "theta": 1.0, "l1": 2.0, "l2": 0.5},
        "halve_bicubic": {},
        "shrink": {"factor": 3.3, "interpolation": "area"},
        "resize": {"shape": (5, 4), "interpolation": "cubic"},
        "subsample_shifted_gaussian": {"sigma": 1.0, "stride": 3},
        "noise_colour": {"level": 2, "seed": 0},
        "noise_grey": {"level": 2, "seed": 0},
        "noise_correlated": {"covariance": (1e-4 * np.eye(3)).tolist(), "seed": 0},
        "jpeg": {"quality": 80},
        "camera_noise": {**CAMERA, "shot_noise": 0.01, "read_noise": 1e-4, "seed": 0},
        "l0": {"lam": 0.002, "kappa": 2.0},
    }
    assert set(calls) == set(operations.OPERATIONS)
    for name, parameters in calls.items():
        before = image.copy()
        result = operations.OPERATIONS[name](image, **parameters)
        assert result.dtype == np.float32, name
        assert result.ndim == 3, name
        assert result.shape[2] == 3, name
        assert result.min() >= -1e-6, name
        assert result.max() <= 1 + 1e-6, name
        assert np.array_equal(image, before), f"{name} wrote into its input"
