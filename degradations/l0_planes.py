"""L0 smoothing of one picture on one core: float32 planes, compiled loops between OpenCV's real FFTs.

Each of the (about 26) steps has two halves, in the notation of Xu et al.: with the picture S fixed, the gradients
(h, v) are those of S where they are strong and 0 elsewhere (equation 12); with them fixed, S solves
(1 + beta L) S = I + beta div(h, v), L being the five-point Laplacian with circular boundaries, diagonal in Fourier
space (equation 8). The divergence is added to I before the transform, so a step costs one FFT each way and channel.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from degradations.compiling import compiled

Planes = NDArray[np.float32]


def smooth_planes(planes: Planes, betas: list[float], lam: float) -> Planes:
    """Smooth contiguous float32 planes (C, H, W) with values in [0, 1); a new array of the same shape.

    With fewer than three channels the strength of an edge is scaled to three, so that grey behaves as equal RGB.
    """
    channels, height, width = planes.shape
    laplacian = _packed_laplacian(height, width)
    smoothed, target = _aligned(planes.shape), _aligned(planes.shape)
    spectrum = _aligned((height, width))
    smoothed[:] = planes
    for beta in betas:
        weakest = lam / beta * channels / 3
        _add_strong_gradients(smoothed, planes, np.float32(beta), np.float32(weakest), target)
        for plane, solution in zip(target, smoothed, strict=True):
            cv2.dft(plane, spectrum)
            # the inverse transform is unnormalised; its height * width is divided out here
            _divide(spectrum, laplacian, np.float32(height * width), np.float32(height * width * beta))
            cv2.dft(spectrum, solution, flags=cv2.DFT_INVERSE)
    return smoothed


def _aligned(shape: tuple[int, ...]) -> Planes:
    """An uninitialised float32 array on a 64-byte boundary, so that FFT code always takes the same path."""
    count = int(np.prod(shape))
    memory = np.empty(count + 16, dtype=np.float32)
    start = -memory.ctypes.data % 64 // 4
    return memory[start : start + count].reshape(shape)


def _packed_laplacian(height: int, width: int) -> Planes:
    """Eigenvalues of the negative Laplacian, (H, W), in the order of OpenCV's packed real spectrum ("CCS").

    Columns 2k - 1 and 2k hold the real and imaginary parts of horizontal frequency k and rows are vertical
    frequencies; in column 0, and in the last one if W is even, the vertical frequencies are themselves packed so.
    """
    columns = _second_difference((np.arange(width) + 1) // 2, width)
    packed_rows = _second_difference((np.arange(height) + 1) // 2, height)
    laplacian = _second_difference(np.arange(height), height)[:, None] + columns
    laplacian[:, 0] = packed_rows
    if width % 2 == 0:
        laplacian[:, -1] = packed_rows + columns[-1]
    return laplacian.astype(np.float32)


def _second_difference(frequencies: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    eigenvalues: NDArray[np.float64] = 2 - 2 * np.cos(2 * np.pi * frequencies / size)
    return eigenvalues


@compiled
def _divide(spectrum: Planes, laplacian: Planes, constant: np.float32, slope: np.float32) -> None:
    """spectrum /= constant + slope * laplacian"""
    height, width = spectrum.shape
    for row in range(height):
        for column in range(width):
            spectrum[row, column] /= constant + slope * laplacian[row, column]


@compiled
def _add_strong_gradients(picture: Planes, start: Planes, beta: np.float32, weakest: np.float32, out: Planes) -> None:
    """out = start + beta div(h, v), (h, v) being the forward differences of `picture` whose energy is >= `weakest`.

    One pass, row by row. Row -1, which is the last one, only provides the vertical differences above row 0.
    """
    channels, height, width = picture.shape
    right = np.empty((channels, width + 1), dtype=np.float32)  # [:, 0] is the last pixel's, which wraps around
    down = np.empty((channels, width), dtype=np.float32)
    above = np.zeros((channels, width), dtype=np.float32)
    weight = np.empty(width, dtype=np.float32)
    last = width - 1
    for row in range(-1, height):
        here = row % height
        below = (row + 1) % height
        weight[:] = 0
        for channel in range(channels):
            for column in range(last):
                to_right = picture[channel, here, column + 1] - picture[channel, here, column]
                to_below = picture[channel, below, column] - picture[channel, here, column]
                right[channel, column + 1] = to_right
                down[channel, column] = to_below
                weight[column] += to_right * to_right + to_below * to_below
            to_right = picture[channel, here, 0] - picture[channel, here, last]
            to_below = picture[channel, below, last] - picture[channel, here, last]
            right[channel, width] = to_right
            down[channel, last] = to_below
            weight[last] += to_right * to_right + to_below * to_below
        for column in range(width):
            weight[column] = np.float32(0) if weight[column] < weakest else beta
        for channel in range(channels):
            for column in range(width):
                right[channel, column + 1] *= weight[column]
                down[channel, column] *= weight[column]
            right[channel, 0] = right[channel, width]
            if row >= 0:
                for column in range(width):
                    divergence = right[channel, column] - right[channel, column + 1]
                    divergence += above[channel, column] - down[channel, column]
                    out[channel, row, column] = start[channel, row, column] + divergence
            for column in range(width):
                above[channel, column] = down[channel, column]
