"""Photographs and known damage to them, for tests of what figures mean. All uint8 (N,H,W,3)."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage import data as photographs


def crops(count: int, seed: int, side: int = 64) -> np.ndarray:
    """Random crops of photographs, reduced so that each shows something."""
    rng = np.random.default_rng(seed)
    sources = [photographs.astronaut(), photographs.coffee(), photographs.chelsea(), photographs.rocket()]
    small = [np.asarray(Image.fromarray(source).resize((200, 200), Image.Resampling.BOX)) for source in sources]
    places = rng.integers(0, 200 - side, (count, 2))
    return np.stack([small[i % len(small)][y : y + side, x : x + side] for i, (y, x) in enumerate(places)])


def noisy(pictures: np.ndarray, deviation: float) -> np.ndarray:
    return _levels(pictures + np.random.default_rng(9).normal(0, deviation, pictures.shape))


def blurred(pictures: np.ndarray, sigma: float) -> np.ndarray:
    return _levels(gaussian_filter(pictures.astype(np.float32), (0, sigma, sigma, 0)))


def tinted(pictures: np.ndarray, shift: float) -> np.ndarray:
    return _levels(pictures + shift * np.array([-1.0, 0.0, 1.0]))


def jpeg(pictures: np.ndarray, quality: int) -> np.ndarray:
    """Each picture stored as JPEG and read again."""
    return np.stack([_through_jpeg(picture, quality) for picture in pictures])


def _through_jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def _levels(pictures: np.ndarray) -> np.ndarray:
    return pictures.round().clip(0, 255).astype(np.uint8)
