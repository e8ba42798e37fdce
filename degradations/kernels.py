"""Blur kernels and the filters that use them.

Sources of the definitions: Zhang et al., "Designing a Practical Degradation Model for Deep Blind Image
Super-Resolution", ICCV 2021 (github.com/cszn/BSRGAN) and MATLAB's `imresize` for the bicubic halving.

Kernels are float64 and sum to one. Pictures are float32 (H, W, C) with values in [0, 1].
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

FloatImage = NDArray[np.float32]
Kernel = NDArray[np.float64]


def gaussian_row(size: int, sigma: float) -> Kernel:
    """The Gaussian of standard deviation `sigma` pixels, centred at (size - 1) / 2: (size,).

    As sigma goes to 0 it becomes the nearest pixel (two of them if size is even). The
    published code divides 0 by 0 or returns an all-black kernel there.
    """
    distances = np.arange(size, dtype=np.float64) - (size - 1) / 2
    return _normalised_exp(-(distances**2) / (2 * max(sigma, 1e-9) ** 2))


def anisotropic_gaussian(size: int, theta: float, l1: float, l2: float) -> Kernel:
    """The (size, size) Gaussian whose covariance has eigenvalues `l1` along angle `theta` (radians) and `l2` across it.

    Eigenvalues are variances in pixels squared; rows run along y and columns along x.
    """
    offsets = np.arange(size, dtype=np.float64) - (size - 1) / 2
    along = offsets[None, :] * np.cos(theta) + offsets[:, None] * np.sin(theta)
    across = offsets[None, :] * np.sin(theta) - offsets[:, None] * np.cos(theta)
    return _normalised_exp(-0.5 * (along**2 / max(l1, 1e-12) + across**2 / max(l2, 1e-12)))


def _normalised_exp(exponents: Kernel) -> Kernel:
    weights: Kernel = np.exp(exponents - exponents.max())
    weights /= weights.sum()
    return weights


def shifted_gaussian_row(size: int, sigma: float, scale: int) -> Kernel:
    """A row of the Gaussian moved by (scale - 1) / 2 pixels, so that taking every `scale`-th pixel stays centred.

    The shift is a linear interpolation with the last weight repeated, renormalised, as in the published shift_pixel;
    the two-dimensional kernel is the outer product of two such rows.
    """
    positions = np.arange(size, dtype=np.float64)
    moved = np.minimum(positions + (scale - 1) / 2, size - 1)
    row: Kernel = np.interp(moved, positions, gaussian_row(size, sigma))
    row /= row.sum()
    return row


def convolve(image: FloatImage, kernel: Kernel) -> FloatImage:
    """Convolution (kernel flipped) of each channel with mirrored borders, `dcb|abcd|cba`.

    An even kernel's centre is at index size / 2, as scipy.ndimage.convolve has it.
    """
    anchor = _anchor(kernel.shape[0])
    flipped = np.ascontiguousarray(kernel[::-1, ::-1], dtype=np.float32)
    filtered = cv2.filter2D(image, -1, flipped, anchor=(anchor, anchor), borderType=cv2.BORDER_REFLECT_101)
    return _with_channels(filtered, image)


def convolve_separable(image: FloatImage, row: Kernel) -> FloatImage:
    """`convolve` with the kernel outer(row, row)."""
    anchor = _anchor(row.shape[0])
    flipped = np.ascontiguousarray(row[::-1], dtype=np.float32)
    filtered = cv2.sepFilter2D(image, -1, flipped, flipped, anchor=(anchor, anchor), borderType=cv2.BORDER_REFLECT_101)
    return _with_channels(filtered, image)


def _anchor(size: int) -> int:
    return size // 2 if size % 2 else size // 2 - 1


def bicubic_halve(image: FloatImage) -> FloatImage:
    """Half the size, (ceil(H / 2), ceil(W / 2), C): MATLAB's antialiased bicubic `imresize` at scale 1/2.

    At this scale all output pixels share the same eight taps; borders are mirrored with the edge repeated.
    Values can leave [0, 1] a little.
    """
    distances = np.abs(np.arange(8) - 3.5) / 2
    near = 1.5 * distances**3 - 2.5 * distances**2 + 1
    far = -0.5 * distances**3 + 2.5 * distances**2 - 4 * distances + 2
    taps = np.where(distances <= 1, near, far)
    taps = (taps / taps.sum()).astype(np.float32)
    filtered = cv2.sepFilter2D(image, -1, taps, taps, anchor=(3, 3), borderType=cv2.BORDER_REFLECT)
    return np.ascontiguousarray(_with_channels(filtered, image)[::2, ::2])


def _with_channels(filtered: Any, image: FloatImage) -> FloatImage:
    # OpenCV drops a channel axis of length one
    reshaped: FloatImage = filtered.reshape(image.shape)
    return reshaped
