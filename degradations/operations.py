"""The operations of recipes: pure functions of a picture and plain numbers.

Pictures are float32 RGB (H, W, 3) with values in [0, 1]; every function returns a new such picture. Noise depends on
`seed` alone, so the same call gives the same pixels. Interpolations are OpenCV's. `OPERATIONS` names them for recipes.

Source: the published light recipe (github.com/PITI-Synthesis/PITI, pretrained_diffusion/degradation/bsrgan_light.py)
and the full one it was cut from (github.com/cszn/BSRGAN, utils/utils_blindsr.py; Zhang et al., ICCV 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

from degradations import camera, kernels
from degradations.kernels import FloatImage
from degradations.l0 import smooth_float

INTERPOLATIONS = {"linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC, "area": cv2.INTER_AREA}


def _clipped(image: Any) -> FloatImage:
    clipped: FloatImage = np.clip(image, 0.0, 1.0, dtype=np.float32)
    return clipped


def blur_isotropic(image: FloatImage, size: int, sigma: float) -> FloatImage:
    """Blur with a (size, size) Gaussian of standard deviation `sigma` pixels."""
    return kernels.convolve_separable(image, kernels.gaussian_row(size, sigma))


def blur_anisotropic(image: FloatImage, size: int, theta: float, l1: float, l2: float) -> FloatImage:
    """Blur with a (size, size) Gaussian: variance `l1` pixels^2 along angle `theta` (radians), `l2` across it."""
    return kernels.convolve(image, kernels.anisotropic_gaussian(size, theta, l1, l2))


def halve_bicubic(image: FloatImage) -> FloatImage:
    """Half the size by MATLAB's antialiased bicubic rule."""
    return _clipped(kernels.bicubic_halve(image))


def shrink(image: FloatImage, factor: float, interpolation: str) -> FloatImage:
    """Resize to int(side / factor), at least one pixel."""
    height, width = (max(1, int(1 / factor * side)) for side in image.shape[:2])
    return resize(image, (height, width), interpolation)


def resize(image: FloatImage, shape: tuple[int, int], interpolation: str) -> FloatImage:
    """Resize to `shape` = (height, width)."""
    return _clipped(cv2.resize(image, (shape[1], shape[0]), interpolation=INTERPOLATIONS[interpolation]))


def subsample_shifted_gaussian(image: FloatImage, sigma: float, stride: int) -> FloatImage:
    """Blur with a 25-pixel Gaussian moved by (stride - 1) / 2 pixels, then keep every `stride`-th row and column."""
    blurred = kernels.convolve_separable(image, kernels.shifted_gaussian_row(25, sigma, stride))
    return _clipped(blurred[::stride, ::stride])


def noise_colour(image: FloatImage, level: float, seed: int) -> FloatImage:
    """Add Gaussian noise of standard deviation level / 255, independent for each pixel and channel."""
    return _clipped(image + _normal(seed, image.shape) * np.float32(level / 255))


def noise_grey(image: FloatImage, level: float, seed: int) -> FloatImage:
    """Add Gaussian noise of standard deviation level / 255, the same in all channels of a pixel."""
    return _clipped(image + _normal(seed, (*image.shape[:2], 1)) * np.float32(level / 255))


def noise_correlated(image: FloatImage, covariance: Sequence[Sequence[float]], seed: int) -> FloatImage:
    """Add Gaussian noise with the 3x3 `covariance` (of values in [0, 1]) between the channels of a pixel."""
    variances, axes = np.linalg.eigh(np.asarray(covariance, dtype=np.float64))
    factor = (np.sqrt(np.abs(variances))[:, None] * axes.T).astype(np.float32)
    return _clipped(image + _normal(seed, image.shape) @ factor)


def _normal(seed: int, shape: tuple[int, ...]) -> FloatImage:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def jpeg(image: FloatImage, quality: int) -> FloatImage:
    """Write as a JPEG of `quality` (0 to 100) and read it again."""
    _, encoded = cv2.imencode(
        ".jpg", cv2.cvtColor(to_uint8(image), cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    return from_uint8(cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB))


def l0(image: FloatImage, lam: float, kappa: float) -> FloatImage:
    """L0 smoothing, see `degradations.l0`.

    The published recipe hands a [0, 1] picture to a function for 0..255 that truncates to whole numbers, so that the
    picture turns black. Here the picture is smoothed, as the paper says.
    """
    return _clipped(smooth_float(image, lam, kappa))


def from_uint8(image: Any) -> FloatImage:
    """0..255 to [0, 1]."""
    scaled: FloatImage = np.multiply(image, np.float32(1 / 255), dtype=np.float32)
    return scaled


def to_uint8(image: FloatImage) -> Any:
    """[0, 1], clipped, to the nearest of 0..255."""
    return np.rint(np.clip(image, 0.0, 1.0) * np.float32(255)).astype(np.uint8)


OPERATIONS: dict[str, Callable[..., FloatImage]] = {
    operation.__name__: operation
    for operation in (
        blur_isotropic,
        blur_anisotropic,
        halve_bicubic,
        shrink,
        resize,
        subsample_shifted_gaussian,
        noise_colour,
        noise_grey,
        noise_correlated,
        jpeg,
        camera.camera_noise,
        l0,
    )
}
