"""Camera sensor noise: convert a picture to raw, add a sensor's noise, and develop the picture again.

The full BSR recipe has this step, but its camera profiles were never published. This is the open model of Brooks et
al., "Unprocessing Images for Learned Raw Denoising", CVPR 2019 (github.com/google-research/google-research,
unprocessing/), with the demosaicing that BSRGAN names: Malvar, He, Cutler, ICASSP 2004, MATLAB's `demosaic`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

FloatImage = NDArray[np.float32]

GAMMA = 2.2
# XYZ to camera, the four cameras of Brooks et al.; a draw is a convex mixture of them
XYZ_TO_CAMERA = np.array(
    [
        [[1.0234, -0.2969, -0.2266], [-0.5625, 1.6328, -0.0469], [-0.0703, 0.2188, 0.6406]],
        [[0.4913, -0.0541, -0.0202], [-0.6130, 1.3513, 0.2906], [-0.1564, 0.2151, 0.7183]],
        [[0.8380, -0.2630, -0.0639], [-0.2887, 1.0725, 0.2496], [-0.0627, 0.1427, 0.5438]],
        [[0.6596, -0.2079, -0.0562], [-0.4782, 1.3016, 0.1933], [-0.0970, 0.1581, 0.5181]],
    ]
)
RGB_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def draw_camera(rng: np.random.Generator) -> dict[str, Any]:
    """Random parameters for `camera_noise`, with the distributions of Brooks et al."""
    weights = rng.uniform(1e-8, 1e8, 4)
    log_shot = rng.uniform(np.log(0.0001), np.log(0.012))
    log_read = 2.18 * log_shot + 1.20 + rng.normal(0, 0.26)
    return {
        "camera_weights": [float(weight) for weight in weights / weights.sum()],
        "gain": float(1 / max(rng.normal(0.8, 0.1), 0.1)),  # the floor is eight deviations away
        "red_gain": float(rng.uniform(1.9, 2.4)),
        "blue_gain": float(rng.uniform(1.5, 1.9)),
        "shot_noise": float(np.exp(log_shot)),
        "read_noise": float(np.exp(log_read)),
        "seed": int(rng.integers(2**53)),
    }


def camera_noise(
    image: FloatImage,
    camera_weights: Sequence[float],
    gain: float,
    red_gain: float,
    blue_gain: float,
    shot_noise: float,
    read_noise: float,
    seed: int,
) -> FloatImage:
    """Add a camera sensor's noise to a float32 RGB picture (H, W, 3) in [0, 1]; returns the same shape and range.

    `camera_weights` mix the four cameras' colour matrices and sum to one; the gains are brightening and white balance;
    a raw value v in [0, 1] gets noise of variance v * shot_noise + read_noise. The Bayer pattern is RGGB.
    """
    to_camera = np.tensordot(np.asarray(camera_weights), XYZ_TO_CAMERA, axes=1) @ RGB_TO_XYZ
    to_camera /= to_camera.sum(axis=1, keepdims=True)
    gains = np.array([red_gain, 1.0, blue_gain]) * gain
    raw = _mosaic(_unprocess(image, to_camera, gains))
    noise = np.random.default_rng(seed).standard_normal(raw.shape, dtype=np.float32)
    raw += noise * np.sqrt(raw * np.float32(shot_noise) + np.float32(read_noise))
    return _process(raw, np.linalg.inv(to_camera), gains)


def _unprocess(image: FloatImage, to_camera: Any, gains: Any) -> FloatImage:
    linear = 0.5 - np.sin(np.arcsin(1 - 2 * np.clip(image, 0, 1)) / 3)  # inverse of the tone curve 3x^2 - 2x^3
    linear = np.maximum(linear, 1e-8) ** GAMMA
    balanced = linear @ to_camera.T.astype(np.float32)
    # near white the gains are kept, so that saturated pixels stay saturated
    grey = balanced.mean(axis=-1, keepdims=True)
    mask = (np.maximum(grey - 0.9, 0) / 0.1) ** 2
    inverse = (1 / gains).astype(np.float32)
    raw: FloatImage = np.clip(balanced * np.maximum(mask + (1 - mask) * inverse, inverse), 0, 1)
    return raw


def _process(raw: FloatImage, to_rgb: Any, gains: Any) -> FloatImage:
    balanced = raw.copy()
    for row, column, channel in ((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 2)):
        balanced[row::2, column::2] *= np.float32(gains[channel])
    planes = np.clip(_demosaic(np.clip(balanced, 0, 1)), 0, 1)
    linear = np.clip(planes @ to_rgb.T.astype(np.float32), 0, 1)
    encoded = np.maximum(linear, 1e-8) ** (1 / GAMMA)
    picture: FloatImage = np.clip(3 * encoded**2 - 2 * encoded**3, 0, 1, dtype=np.float32)
    return picture


def _mosaic(image: FloatImage) -> FloatImage:
    raw = np.ascontiguousarray(image[..., 1])
    raw[0::2, 0::2] = image[0::2, 0::2, 0]
    raw[1::2, 1::2] = image[1::2, 1::2, 2]
    return raw


_GREEN = np.array([[0, 0, -1, 0, 0], [0, 0, 2, 0, 0], [-1, 2, 4, 2, -1], [0, 0, 2, 0, 0], [0, 0, -1, 0, 0]]) / 8
_SAME_ROW = (
    np.array([[0, 0, 0.5, 0, 0], [0, -1, 0, -1, 0], [-1, 4, 5, 4, -1], [0, -1, 0, -1, 0], [0, 0, 0.5, 0, 0]]) / 8
)
_DIAGONAL = (
    np.array([[0, 0, -1.5, 0, 0], [0, 2, 0, 2, 0], [-1.5, 0, 6, 0, -1.5], [0, 2, 0, 2, 0], [0, 0, -1.5, 0, 0]]) / 8
)


def _demosaic(raw: FloatImage) -> FloatImage:
    """Malvar, He, Cutler: (H, W) RGGB to (H, W, 3). Mirrored borders keep the pattern's phase."""
    green, row, column, diagonal = (
        cv2.filter2D(raw, -1, kernel.astype(np.float32), borderType=cv2.BORDER_REFLECT_101).reshape(raw.shape)
        for kernel in (_GREEN, _SAME_ROW, _SAME_ROW.T, _DIAGONAL)
    )
    image = np.stack([raw, raw, raw], axis=-1)
    image[0::2, 0::2, 1] = green[0::2, 0::2]
    image[1::2, 1::2, 1] = green[1::2, 1::2]
    for channel, own in ((0, 0), (2, 1)):
        other = 1 - own
        image[own::2, other::2, channel] = row[own::2, other::2]
        image[other::2, own::2, channel] = column[other::2, own::2]
        image[other::2, other::2, channel] = diagonal[other::2, other::2]
    return image
