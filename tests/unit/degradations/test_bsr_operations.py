"""What the degradations keep and change, beside the published results of test_published_degradations."""

from __future__ import annotations

import numpy as np
import pytest
from skimage import data

from degradations import camera, kernels, l0_smooth, operations

LEVEL = 1 / 255
PHOTOGRAPH = operations.from_uint8(data.astronaut()[90:158, 170:261])
FLAT = np.full((200, 200, 3), 0.5, dtype=np.float32)


def test_a_blur_narrower_than_a_pixel_keeps_the_picture_and_its_brightness() -> None:
    assert np.abs(operations.blur_isotropic(PHOTOGRAPH, 5, 0.0) - PHOTOGRAPH).max() < 1e-6
    for blurred in (
        operations.blur_isotropic(PHOTOGRAPH, 6, 1e-4),
        operations.blur_anisotropic(PHOTOGRAPH, 6, 0.3, 1e-7, 1e-7),
        operations.blur_anisotropic(PHOTOGRAPH, 7, 0.3, 0.0, 0.0),
    ):
        assert abs(float(blurred.mean() - PHOTOGRAPH.mean())) < LEVEL
    np.testing.assert_allclose(kernels.gaussian_row(6, 0.001).sum(), 1)


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
