"""Degradations for the training of upsamplers: L0 smoothing and the random degradations of BSR.

    from degradations import apply_recipe, bsr_degrade, draw_recipe, l0_smooth

    low = bsr_degrade(picture, scale=4, rng=np.random.default_rng(7), recipe="light")
    recipe = draw_recipe(np.random.default_rng(7), scale=4, recipe="light")   # data: recipe.to_json()
    assert (apply_recipe(picture, recipe) == low).all()

Pictures are uint8 RGB. The library needs numpy, OpenCV and numba, and torch only for torch tensors.
"""

from degradations.bsr import Recipe, apply_recipe, bsr_degrade, draw_recipe
from degradations.l0 import l0_smooth

__all__ = ["Recipe", "apply_recipe", "bsr_degrade", "draw_recipe", "l0_smooth"]
