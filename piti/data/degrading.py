"""A low-resolution variant of a picture: the part of the picture it shows, and the recipe that degraded it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from degradations import Recipe, apply_recipe, draw_recipe
from piti.config import DataConfig, DegradationConfig
from piti.data.decoding import LowResolution
from piti.data.resizing import CropBox, crop_photograph


def draw_variant(
    image: NDArray[np.uint8], data: DataConfig, degradation: DegradationConfig, scale: int, rng: np.random.Generator
) -> tuple[LowResolution, Recipe]:
    """Degrade `image`, uint8 (H, W, 3) as stored; everything random is drawn from `rng`."""
    box = CropBox.random(rng.random, *image.shape[:2]) if data.geometry == "random" else None
    picture = image if box is None else np.ascontiguousarray(crop_photograph(image, box, data.image_size))
    recipe = draw_recipe(rng, scale, degradation.recipe)
    return LowResolution(apply_recipe(picture, recipe), box), recipe
