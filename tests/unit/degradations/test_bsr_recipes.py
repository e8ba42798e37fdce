"""Recipes: what is drawn, that it replays bit for bit, and that any picture and scale is taken."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from scipy import stats
from skimage import data

from degradations import Recipe, apply_recipe, bsr_degrade, draw_recipe

PHOTOGRAPH = data.astronaut()[100:196, 180:260]
NUM_DRAWS = 4000


@pytest.fixture(scope="module")
def light() -> list[Recipe]:
    rng = np.random.default_rng(11)
    return [draw_recipe(rng, 4, "light") for _ in range(NUM_DRAWS)]


@pytest.fixture(scope="module")
def full() -> list[Recipe]:
    rng = np.random.default_rng(12)
    return [draw_recipe(rng, 4, "full") for _ in range(NUM_DRAWS)]


def parameters(recipes: list[Recipe], name: str, key: str, *, halved: bool | None = None) -> list[float]:
    return [
        operation.parameters[key]
        for recipe in recipes
        if halved is None or is_halved(recipe) == halved
        for operation in recipe.operations[is_halved(recipe) :]
        if operation.name == name
    ]


def is_halved(recipe: Recipe) -> bool:
    first = recipe.operations[0]
    return first.name == "halve_bicubic" or (first.name == "shrink" and first.parameters["factor"] == 2.0)


def share(recipes: list[Recipe], *names: str) -> float:
    return float(np.mean([any(o.name in names for o in r.operations[is_halved(r) :]) for r in recipes]))


def is_share(measured: float, expected: float, trials: int = NUM_DRAWS) -> bool:
    return abs(measured - expected) < 4 * np.sqrt(expected * (1 - expected) / trials)


def is_uniform(values: list[float], low: float, high: float) -> bool:
    return bool(stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3)


def is_uniform_on(values: list[float], choices: list[float]) -> bool:
    counts = [values.count(choice) for choice in choices]
    return sum(counts) == len(values) and bool(stats.chisquare(counts).pvalue > 1e-3)


@pytest.mark.parametrize("recipe", ["light", "full"])
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_replays_bit_for_bit_through_json(recipe: str, scale: int) -> None:
    rng = np.random.default_rng([scale, len(recipe)])
    for _ in range(25):
        drawn = draw_recipe(rng, scale, recipe)  # type: ignore[arg-type]
        text = drawn.to_json()
        again = Recipe.from_json(text)
        assert again == drawn
        assert again.to_json() == text
        assert np.array_equal(apply_recipe(PHOTOGRAPH, drawn), apply_recipe(PHOTOGRAPH, again))


def test_bsr_degrade_is_draw_then_apply_and_depends_on_the_generator_alone() -> None:
    first = bsr_degrade(PHOTOGRAPH, 4, np.random.default_rng(5))
    assert np.array_equal(first, apply_recipe(PHOTOGRAPH, draw_recipe(np.random.default_rng(5), 4, "light")))
    assert not np.array_equal(first, bsr_degrade(PHOTOGRAPH, 4, np.random.default_rng(6)))
    assert not np.array_equal(first, bsr_degrade(PHOTOGRAPH, 4, np.random.default_rng(5), recipe="full"))
    assert bsr_degrade(PHOTOGRAPH).shape == (24, 20, 3)


@pytest.mark.parametrize("recipe", ["light", "full"])
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(96, 80, 3), (67, 41, 3), (9, 50, 3), (53, 71), (31, 31, 1), (8, 8, 3)], ids=str)
def test_any_scale_size_and_grey(recipe: str, scale: int, shape: tuple[int, ...]) -> None:
    picture = PHOTOGRAPH[: shape[0], : shape[1]] if len(shape) == 3 else PHOTOGRAPH[: shape[0], : shape[1], 0]
    picture = np.ascontiguousarray(picture[..., : shape[2]] if len(shape) == 3 else picture)
    rng = np.random.default_rng(8)
    for _ in range(12):
        low = bsr_degrade(picture, scale, rng, recipe)  # type: ignore[arg-type]
        assert low.dtype == np.uint8
        assert low.shape == (shape[0] // scale, shape[1] // scale, *shape[2:])


def test_a_degraded_picture_is_still_that_picture(light: list[Recipe]) -> None:
    """Every light draw stays close to the plainly shrunk picture: no swapped colours, no shift, no black picture."""
    plain = cv2.resize(PHOTOGRAPH, (20, 24), interpolation=cv2.INTER_AREA).astype(float)
    errors = [np.sqrt(np.mean((apply_recipe(PHOTOGRAPH, recipe) - plain) ** 2)) for recipe in light[:300]]
    others = [np.sqrt(np.mean((wrong - plain) ** 2)) for wrong in (plain[..., ::-1], np.roll(plain, 4, 1), 0 * plain)]
    assert np.median(errors) < 0.5 * min(others)
    assert max(errors) < min(others)


def test_how_often_each_light_operation_is_drawn(light: list[Recipe]) -> None:
    assert is_share(float(np.mean([is_halved(recipe) for recipe in light])), 0.25)
    assert is_share(share(light, "blur_isotropic", "blur_anisotropic"), 0.8)
    assert is_share(share(light, "blur_anisotropic"), 0.4)
    assert is_share(share(light, "jpeg"), 0.5)
    assert is_share(share(light, "l0"), 0.2)
    assert is_share(share(light, "shrink"), 0.8)
    assert is_share(share(light, "subsample_shifted_gaussian"), 0.2)
    assert is_share(share(light, "noise_colour"), 0.4)
    assert is_share(share(light, "noise_grey"), 0.4)
    assert is_share(share(light, "noise_correlated"), 0.2)
    assert share(light, "camera_noise") == 0


def test_how_often_each_full_operation_is_drawn(full: list[Recipe]) -> None:
    assert is_share(float(np.mean([is_halved(recipe) for recipe in full])), 0.25)
    assert is_share(share(full, "shrink"), 0.75)
    assert is_share(share(full, "camera_noise"), 0.25)
    assert share(full, "l0") == 0
    counts = [[operation.name for operation in recipe.operations].count("jpeg") for recipe in full]
    assert is_share(counts.count(2) / NUM_DRAWS, 0.9)
    assert set(counts) == {1, 2}
    assert all(recipe.operations[-1].name == "jpeg" for recipe in full)
    blurs = [sum(operation.name.startswith("blur") for operation in recipe.operations) for recipe in full]
    assert set(blurs) == {2}


@pytest.mark.parametrize(("halved", "left"), [(False, 4), (True, 2)])
def test_light_parameters_have_the_published_ranges(light: list[Recipe], halved: bool, left: int) -> None:
    def drawn(name: str, key: str) -> list[float]:
        return parameters(light, name, key, halved=halved)

    assert is_uniform(drawn("blur_isotropic", "sigma"), 0, (2 + 0.2 * left) / 4)
    assert is_uniform_on(drawn("blur_isotropic", "size"), [5, 6, 7])
    assert is_uniform(drawn("blur_anisotropic", "l1"), 0, (4 + left) / 4)
    assert is_uniform(drawn("blur_anisotropic", "l2"), 0, (4 + left) / 4)
    assert is_uniform(drawn("blur_anisotropic", "theta"), 0, np.pi)
    assert is_uniform_on(drawn("blur_anisotropic", "size"), list(range(5, 15)))
    assert is_uniform(drawn("shrink", "factor"), 1, 2 * left)
    assert is_uniform(drawn("subsample_shifted_gaussian", "sigma"), 0.1, 0.6 * left)
    assert set(drawn("subsample_shifted_gaussian", "stride")) == {left}
    assert is_uniform_on(drawn("noise_colour", "level") + drawn("noise_grey", "level"), [1, 2])
    assert is_uniform_on(drawn("jpeg", "quality"), list(range(80, 96)))
    assert is_uniform(drawn("l0", "lam"), 0.0012, 0.004)
    assert is_uniform_on([str(kind) for kind in drawn("resize", "interpolation")], ["linear", "cubic", "area"])  # type: ignore[list-item, arg-type]


@pytest.mark.parametrize(("halved", "left"), [(False, 4), (True, 2)])
def test_full_parameters_have_the_published_ranges(full: list[Recipe], halved: bool, left: int) -> None:
    def drawn(name: str, key: str) -> list[float]:
        return parameters(full, name, key, halved=halved)

    assert is_uniform(drawn("blur_isotropic", "sigma"), 0, 2 + 0.2 * left)
    assert is_uniform(drawn("blur_anisotropic", "l1"), 0, 4 + left)
    assert is_uniform_on(drawn("blur_isotropic", "size"), list(range(7, 26, 2)))
    assert is_uniform_on(drawn("blur_anisotropic", "size"), list(range(7, 26, 2)))
    assert is_uniform_on(drawn("noise_colour", "level"), list(range(2, 26)))
    assert is_uniform_on(drawn("jpeg", "quality"), list(range(30, 96)))
    assert is_uniform(list(np.log(drawn("camera_noise", "shot_noise"))), np.log(1e-4), np.log(0.012))


def test_correlated_noise_is_at_most_the_highest_level(light: list[Recipe]) -> None:
    covariances = np.array(parameters(light, "noise_correlated", "covariance"))
    assert (covariances >= 0).all()
    np.testing.assert_allclose(covariances, covariances.transpose(0, 2, 1), atol=1e-18)
    traces = np.trace(covariances, axis1=1, axis2=2) / (2 / 255) ** 2
    # the trace of a matrix is that of its variances, three independent uniform numbers
    assert stats.kstest(traces, stats.irwinhall(3).cdf).pvalue > 1e-3


def test_order_of_the_slots(light: list[Recipe]) -> None:
    """All orders of the free operations are equally likely; the last resize follows the other one."""
    places = [[operation.name for operation in recipe.operations[is_halved(recipe) :]] for recipe in light]
    shrinkers = ("shrink", "subsample_shifted_gaussian")
    for names in places:
        assert next(index for index, name in enumerate(names) if name in shrinkers) < names.index("resize")
    both = [names for names in places if "jpeg" in names and "l0" in names]
    assert is_share(float(np.mean([names.index("jpeg") < names.index("l0") for names in both])), 0.5, len(both))
    # of three random places the JPEG's is before both resizes, between them, or after them with equal chance
    with_jpeg = [names for names in places if "jpeg" in names]
    before = [
        sum(names.index("jpeg") > names.index(n) for n in names if n in (*shrinkers, "resize")) for names in with_jpeg
    ]
    assert is_uniform_on(before, [0, 1, 2])


def test_no_halving_at_other_scales() -> None:
    rng = np.random.default_rng(2)
    for scale in (2, 3, 8):
        assert not any(
            operation.name == "halve_bicubic"
            for _ in range(200)
            for operation in draw_recipe(rng, scale, "light").operations
        )


def test_what_bad_input_gets() -> None:
    rng = np.random.default_rng(0)
    recipe = draw_recipe(rng, 4, "light")
    with pytest.raises(ValueError, match="light, full"):
        draw_recipe(rng, 4, "medium")  # type: ignore[arg-type]
    for scale in (1, 0, -4, 2.5, True):
        with pytest.raises(ValueError, match="scale"):
            draw_recipe(rng, scale, "light")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="uint8"):
        apply_recipe(PHOTOGRAPH / 255, recipe)
    with pytest.raises(ValueError, match="shape"):
        apply_recipe(np.zeros((8, 8, 4), dtype=np.uint8), recipe)
    with pytest.raises(ValueError, match="smaller than the scale"):
        apply_recipe(PHOTOGRAPH[:3], recipe)


def test_what_a_damaged_recipe_gets() -> None:
    good = json.loads(draw_recipe(np.random.default_rng(0), 4, "light").to_json())
    damaged = {
        "format": {**good, "format": 99},
        "scale": {**good, "scale": 0},
        "sharpen": {**good, "operations": [{"name": "sharpen"}]},
        "sigma": {**good, "operations": [{"name": "blur_isotropic", "size": 5}]},
        "operations": {"format": 1, "recipe": "light", "scale": 4},
    }
    for word, tree in damaged.items():
        with pytest.raises(ValueError, match=word):
            Recipe.from_json(json.dumps(tree))
    with pytest.raises(ValueError, match="recipe"):
        Recipe.from_json("[]")
