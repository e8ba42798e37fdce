"""Random degradations of "real-world blind super-resolution" (BSR) as recipes that can be drawn, stored and replayed.

`light` is what PITI trains its upsampler on (github.com/PITI-Synthesis/PITI,
pretrained_diffusion/degradation/bsrgan_light.py); `full` is BSRGAN's own (github.com/cszn/BSRGAN,
utils/utils_blindsr.py, degradation_bsrgan; Zhang et al., ICCV 2021) with camera noise from `degradations.camera`.

Departures from the published code, which is otherwise followed constant by constant:
- a picture that is not square is cropped to multiples of the scale (published light code swaps height and width);
- L0 smoothing smooths (published light code turns the picture black, see `operations.l0`);
- a blur narrower than a pixel is the limit of a Gaussian (published: 0 / 0, or a black picture);
- the final crop of the full recipe is left to the caller, and intermediate sides are at least one pixel.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from degradations.camera import draw_camera
from degradations.operations import INTERPOLATIONS, OPERATIONS, from_uint8, resize, to_uint8

RecipeName = Literal["light", "full"]
FORMAT = 1


@dataclass(frozen=True)
class Operation:
    """The name of an entry of `operations.OPERATIONS`, and its parameters as JSON values."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A drawn degradation. It fits pictures of any size, and gives the same pixels after a round trip through JSON."""

    recipe: str
    scale: int
    operations: tuple[Operation, ...]

    def to_json(self) -> str:
        """One line of JSON. Floats are written so that they read back exactly."""
        operations = [{"name": operation.name, **operation.parameters} for operation in self.operations]
        return json.dumps({"format": FORMAT, "recipe": self.recipe, "scale": self.scale, "operations": operations})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read the output of `to_json`. Raises ValueError that names what is wrong."""
        tree = json.loads(text)
        if not isinstance(tree, dict) or tree.get("format") != FORMAT:
            raise ValueError(f"not a degradation recipe of format {FORMAT}: {text[:80]!r}")
        try:
            operations = tuple(_read_operation(dict(entry)) for entry in tree["operations"])
            return cls(str(tree["recipe"]), _checked_scale(tree["scale"]), operations)
        except (KeyError, TypeError) as error:
            raise ValueError(f"degradation recipe is damaged: {error}") from error


def _read_operation(entry: dict[str, Any]) -> Operation:
    name = entry.pop("name")
    if name not in OPERATIONS:
        raise ValueError(f"unknown degradation {name!r}; known are {', '.join(OPERATIONS)}")
    given = dict(entry, shape=(1, 1)) if name == "resize" else entry
    inspect.signature(OPERATIONS[name]).bind(None, **given)
    return Operation(name, entry)


def bsr_degrade(
    image: NDArray[np.uint8],
    scale: int = 4,
    rng: np.random.Generator | None = None,
    recipe: RecipeName = "light",
) -> NDArray[np.uint8]:
    """Degrade a picture at random: `apply_recipe` of a drawn recipe.

    `image` is uint8 RGB (H, W, 3) or grey (H, W) or (H, W, 1); the result has H // scale rows and W // scale columns.
    `rng` None: fresh entropy. Raises TypeError or ValueError for another type, shape, scale or recipe.
    """
    return apply_recipe(image, draw_recipe(np.random.default_rng() if rng is None else rng, scale, recipe))


def apply_recipe(image: NDArray[np.uint8], recipe: Recipe) -> NDArray[np.uint8]:
    """Apply a drawn recipe to uint8 (H, W, 3), (H, W) or (H, W, 1): (H // scale, W // scale) and channels as given.

    A grey picture is treated as an RGB picture with three equal channels, and the result's luminance is returned.
    Raises TypeError for anything but uint8, ValueError for another shape or a picture smaller than the scale.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        raise TypeError(f"image is {getattr(image, 'dtype', type(image).__name__)}; give a numpy array of uint8")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        raise ValueError(f"image has shape {image.shape}; give (H, W), (H, W, 1) or (H, W, 3)")
    height, width = (side // recipe.scale for side in image.shape[:2])
    if not height or not width:
        raise ValueError(f"image of {image.shape[0]}x{image.shape[1]} pixels is smaller than the scale {recipe.scale}")
    grey = image.ndim == 2 or image.shape[2] == 1
    colour = np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2) if grey else image
    picture = from_uint8(colour[: height * recipe.scale, : width * recipe.scale])
    for operation in recipe.operations:
        if operation.name == "resize":
            picture = resize(picture, (height, width), **operation.parameters)
        else:
            picture = OPERATIONS[operation.name](picture, **operation.parameters)
    low: NDArray[np.uint8] = to_uint8(picture)
    if not grey:
        return low
    luminance: NDArray[np.uint8] = np.rint(low @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    return luminance.reshape(height, width, *image.shape[2:])


def draw_recipe(rng: np.random.Generator, scale: int, recipe: RecipeName) -> Recipe:
    """Draw the random choices of a degradation. Raises ValueError for an unknown recipe or a scale below 2."""
    if recipe not in get_args(RecipeName):
        raise ValueError(f"unknown recipe {recipe!r}; known are {', '.join(get_args(RecipeName))}")
    scale = _checked_scale(scale)
    halved = scale == 4 and rng.random() < 0.25
    operations = [_draw_halving(rng)] if halved else []
    draw = _draw_light if recipe == "light" else _draw_full
    left = 2 if halved else scale  # the remaining factor to shrink by, which also sets the width of the blurs
    for slot in _slot_order(rng):
        operations += draw(rng, slot, left)
    if recipe == "full":
        operations.append(_draw_jpeg(rng, 30))
    return Recipe(recipe, scale, tuple(operations))


def _checked_scale(scale: Any) -> int:
    if isinstance(scale, bool) or not isinstance(scale, int | np.integer) or scale < 2:
        raise ValueError(f"scale is {scale!r}; give a whole number from 2, such as 2, 3, 4 or 8")
    return int(scale)


def _slot_order(rng: np.random.Generator) -> list[int]:
    """Seven slots in random order; the last resize (3) changes places with the other (2) if it came before it."""
    order = [int(slot) for slot in rng.permutation(7)]
    first, last = order.index(2), order.index(3)
    if first > last:
        order[first], order[last] = order[last], order[first]
    return order


def _draw_light(rng: np.random.Generator, slot: int, scale: int) -> list[Operation]:
    match slot:
        case 0:
            return [_draw_narrow_blur(rng, scale)] if rng.random() < 0.8 else []
        case 2:
            return [_draw_shrinking(rng, scale, resize_probability=0.8)]
        case 3:
            return [Operation("resize", {"interpolation": _draw_interpolation(rng)})]
        case 4:
            return [_draw_noise(rng, 1, 2)]
        case 5:
            return [_draw_jpeg(rng, 80)] if rng.random() < 0.5 else []
        case 6:
            return [_draw_l0(rng)] if rng.random() < 0.2 else []
    return []  # slot 1, the full recipe's second blur, stays empty


def _draw_full(rng: np.random.Generator, slot: int, scale: int) -> list[Operation]:
    match slot:
        case 0 | 1:
            return [_draw_wide_blur(rng, scale)]
        case 2:
            return [_draw_shrinking(rng, scale, resize_probability=0.75)]
        case 3:
            return [Operation("resize", {"interpolation": _draw_interpolation(rng)})]
        case 4:
            return [_draw_noise(rng, 2, 25)]
        case 5:
            return [_draw_jpeg(rng, 30)] if rng.random() < 0.9 else []
    return [Operation("camera_noise", draw_camera(rng))] if rng.random() < 0.25 else []


def _draw_interpolation(rng: np.random.Generator) -> str:
    return list(INTERPOLATIONS)[rng.integers(3)]


def _draw_halving(rng: np.random.Generator) -> Operation:
    if rng.random() < 0.5:
        return Operation("shrink", {"factor": 2.0, "interpolation": _draw_interpolation(rng)})
    return Operation("halve_bicubic")


def _draw_narrow_blur(rng: np.random.Generator, scale: int) -> Operation:
    if rng.random() < 0.5:
        return _draw_anisotropic(rng, size=int(rng.integers(2, 12)) + 3, largest=(4 + scale) / 4)
    size = int(rng.integers(2, 5)) + 3
    return Operation("blur_isotropic", {"size": size, "sigma": float((2 + 0.2 * scale) / 4 * rng.random())})


def _draw_wide_blur(rng: np.random.Generator, scale: int) -> Operation:
    size = 2 * int(rng.integers(2, 12)) + 3
    if rng.random() < 0.5:
        return _draw_anisotropic(rng, size, largest=4.0 + scale)
    return Operation("blur_isotropic", {"size": size, "sigma": float((2 + 0.2 * scale) * rng.random())})


def _draw_anisotropic(rng: np.random.Generator, size: int, largest: float) -> Operation:
    l1, l2 = (float(largest * rng.random()) for _ in range(2))
    return Operation("blur_anisotropic", {"size": size, "theta": float(np.pi * rng.random()), "l1": l1, "l2": l2})


def _draw_shrinking(rng: np.random.Generator, scale: int, resize_probability: float) -> Operation:
    if rng.random() < resize_probability:
        factor = float(rng.uniform(1, 2 * scale))
        return Operation("shrink", {"factor": factor, "interpolation": _draw_interpolation(rng)})
    return Operation("subsample_shifted_gaussian", {"sigma": float(rng.uniform(0.1, 0.6 * scale)), "stride": scale})


def _draw_noise(rng: np.random.Generator, lowest: int, highest: int) -> Operation:
    level, kind, seed = int(rng.integers(lowest, highest + 1)), rng.random(), int(rng.integers(2**53))
    if kind > 0.6:
        return Operation("noise_colour", {"level": level, "seed": seed})
    if kind < 0.4:
        return Operation("noise_grey", {"level": level, "seed": seed})
    # the published covariance: random variances in a random basis, entries made positive, at the highest level
    basis = np.linalg.svd(rng.random((3, 3)))[0]
    covariance = np.abs((highest / 255) ** 2 * (basis.T @ np.diag(rng.random(3)) @ basis))
    return Operation("noise_correlated", {"covariance": covariance.tolist(), "seed": seed})


def _draw_jpeg(rng: np.random.Generator, lowest_quality: int) -> Operation:
    return Operation("jpeg", {"quality": int(rng.integers(lowest_quality, 96))})


def _draw_l0(rng: np.random.Generator) -> Operation:
    return Operation("l0", {"lam": float(rng.uniform(1.2, 4.0) * 0.001), "kappa": 2.0})
