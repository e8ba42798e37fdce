"""L0 smoothing against a plain float64 reference, and what smoothing must leave alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage import data

from degradations import l0_smooth
from degradations.l0 import smooth_batch


def reference(picture: NDArray[np.uint8], lam: float, kappa: float = 2.0) -> NDArray[np.float64]:
    """Xu et al., algorithm 1, in float64 with complex FFTs; 0..255, unrounded."""
    start = picture / 256.0
    height, width = picture.shape[:2]
    impulse = np.zeros((height, width))
    impulse[0, 0] = 1
    differences = [np.roll(impulse, -1, axis) - impulse for axis in (0, 1)]
    laplacian = sum(np.abs(np.fft.fft2(difference)) ** 2 for difference in differences)[..., None]
    smoothed, beta = start, 2 * lam
    while beta < 1e5:
        h, v = np.roll(smoothed, -1, 1) - smoothed, np.roll(smoothed, -1, 0) - smoothed
        weak = (h**2 + v**2).sum(axis=2) < lam / beta
        h[weak], v[weak] = 0, 0
        divergence = np.roll(h, 1, 1) - h + np.roll(v, 1, 0) - v
        spectrum = np.fft.fft2(start + beta * divergence, axes=(0, 1)) / (1 + beta * laplacian)
        smoothed = np.fft.ifft2(spectrum, axes=(0, 1)).real
        beta *= kappa
    return smoothed * 256


def psnr(left: NDArray[np.generic], right: NDArray[np.generic]) -> float:
    error = np.mean((left.astype(np.float64) - right.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-12)))


PHOTOGRAPH = data.astronaut()[60:188, 150:278]


@pytest.mark.parametrize("lam", [0.0012, 0.002, 0.004, 0.02])
@pytest.mark.parametrize("crop", [(128, 128), (97, 61), (64, 101), (45, 125)], ids=str)
def test_equals_the_float64_reference(lam: float, crop: tuple[int, int]) -> None:
    picture = PHOTOGRAPH[: crop[0], : crop[1]]
    expected = np.clip(reference(picture, lam), 0, 255)
    smoothed = l0_smooth(picture, lam)
    assert smoothed.dtype == np.uint8
    assert psnr(smoothed, expected) >= 50
    # an edge at the threshold may fall on either side in float32, so that a handful of pixels is allowed to differ
    assert np.mean(np.abs(smoothed - expected) <= 1) >= 0.999
    assert psnr(smoothed, picture) < 45, "the picture must have been smoothed at all"


@pytest.mark.parametrize("kappa", [1.5, 3.0])
def test_kappa_sets_the_growth_of_beta(kappa: float) -> None:
    picture = PHOTOGRAPH[:64, :64]
    expected = np.clip(reference(picture, 0.004, kappa), 0, 255)
    assert psnr(l0_smooth(picture, 0.004, kappa), expected) >= 50
    assert psnr(l0_smooth(picture, 0.004), expected) < 50


def test_a_step_stays_a_step_while_texture_beside_it_goes() -> None:
    step = np.full((64, 80, 3), 40, dtype=np.uint8)
    step[:, 30:65] = (200, 180, 90)
    assert np.array_equal(l0_smooth(step, 0.004), step)
    texture = np.random.default_rng(3).integers(-3, 4, step.shape)
    smoothed = l0_smooth((step + texture).astype(np.uint8), 0.004).astype(int)
    assert np.abs(smoothed[:, 30] - smoothed[:, 29]).min() >= np.abs(step[0, 30].astype(int) - 40).min() - 6
    assert smoothed[:, 31:64].std(axis=(0, 1)).max() < texture.std() / 4


@pytest.mark.parametrize("level", [0, 1, 128, 255])
def test_a_flat_picture_is_left_alone(level: int) -> None:
    flat = np.full((19, 23, 3), level, dtype=np.uint8)
    assert np.array_equal(l0_smooth(flat, 0.003), flat)


def test_grey_is_rgb_with_equal_channels() -> None:
    grey = PHOTOGRAPH[..., 1]
    colour = l0_smooth(np.repeat(grey[..., None], 3, axis=2), 0.002)
    smoothed = l0_smooth(grey, 0.002)
    assert smoothed.shape == grey.shape
    assert np.mean(np.abs(smoothed.astype(int) - colour[..., 0]) <= 1) >= 0.999
    assert np.array_equal(l0_smooth(grey[..., None], 0.002)[..., 0], smoothed)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (8, 1), (2, 2), (3, 5), (127, 2)], ids=str)
def test_any_size(size: tuple[int, int]) -> None:
    picture = PHOTOGRAPH[: size[0], : size[1]]
    smoothed = l0_smooth(picture, 0.002)
    assert smoothed.shape == picture.shape
    assert np.abs(smoothed - np.clip(reference(picture, 0.002), 0, 255)).max() <= 1


def test_same_pixels_every_time_wherever_the_picture_lies_in_memory() -> None:
    expected = l0_smooth(PHOTOGRAPH, 0.0015)
    memory = np.empty(PHOTOGRAPH.size + 64, dtype=np.uint8)
    for offset in (0, 1, 7, 33):
        moved = memory[offset : offset + PHOTOGRAPH.size].reshape(PHOTOGRAPH.shape)
        moved[:] = PHOTOGRAPH
        assert np.array_equal(l0_smooth(moved, 0.0015), expected)
    assert np.array_equal(l0_smooth(np.asfortranarray(PHOTOGRAPH), 0.0015), expected)
    assert not np.shares_memory(expected, PHOTOGRAPH)


def test_a_batch_is_its_pictures() -> None:
    batch = np.stack([PHOTOGRAPH, PHOTOGRAPH[::-1]])
    singles = np.stack([l0_smooth(picture, 0.003) for picture in batch])
    assert np.array_equal(l0_smooth(batch, 0.003), singles)


@pytest.mark.parametrize(
    "shape", [(2, 128, 128, 3), (1, 61, 97, 3), (128, 128, 3), (128, 125), (3, 32, 33, 1)], ids=str
)
@pytest.mark.parametrize("lam", [0.0012, 0.004])
def test_a_tensor_on_the_cpu_gets_the_same_pixels_as_an_array(shape: tuple[int, ...], lam: float) -> None:
    height, width = shape[-3:-1] if len(shape) > 2 else shape
    planes = np.stack(
        [PHOTOGRAPH[:height, :width], PHOTOGRAPH[::-1, ::-1][:height, :width], PHOTOGRAPH[:height, :width]]
    )
    count = shape[0] if len(shape) == 4 else 1
    channels = shape[-1] if len(shape) > 2 else 1
    pictures = np.ascontiguousarray(planes[:count, ..., :channels]).reshape(shape)
    smoothed = l0_smooth(torch.from_numpy(pictures), lam)
    assert smoothed.dtype == torch.uint8
    assert np.array_equal(smoothed.numpy(), l0_smooth(pictures, lam))


@pytest.mark.parametrize("shape", [(2, 128, 128, 3), (1, 61, 97, 3), (1, 128, 125, 1)], ids=str)
@pytest.mark.parametrize("lam", [0.0012, 0.004])
def test_the_batch_that_other_devices_run_equals_numpy_within_a_level(shape: tuple[int, ...], lam: float) -> None:
    picture = PHOTOGRAPH[: shape[1], : shape[2], : shape[3]]
    pictures = np.stack([picture, picture[::-1]][: shape[0]])
    smoothed = smooth_batch(torch.from_numpy(pictures), lam, 2.0).numpy()
    expected = l0_smooth(pictures, lam)
    assert np.mean(np.abs(smoothed.astype(int) - expected) <= 1) >= 0.999
    assert psnr(smoothed, expected) > 50


def test_what_bad_input_gets() -> None:
    with pytest.raises(TypeError, match="uint8"):
        l0_smooth(PHOTOGRAPH.astype(np.float32), 0.002)
    with pytest.raises(TypeError, match="uint8"):
        l0_smooth(torch.zeros(4, 4, 3), 0.002)
    with pytest.raises(TypeError, match="list"):
        l0_smooth([[1]], 0.002)  # type: ignore[type-var]
    for shape in ((4, 4, 2), (5,), (1, 1, 4, 4, 3), (0, 4, 3)):
        with pytest.raises(ValueError, match="shape"):
            l0_smooth(np.zeros(shape, dtype=np.uint8), 0.002)
    for lam in (0.0, -1.0, float("nan"), 1e5):
        with pytest.raises(ValueError, match="lam"):
            l0_smooth(PHOTOGRAPH, lam)
    with pytest.raises(ValueError, match="kappa"):
        l0_smooth(PHOTOGRAPH, 0.002, kappa=1.0)
