"""LPIPS orders real degradations as people do, and diversity sees a collapse."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage import data as photographs

from eval import LpipsNetwork, lpips_distance, lpips_diversity
from eval.lpips import lpips_distances


@pytest.fixture(scope="module")
def network() -> LpipsNetwork:
    return LpipsNetwork(seed=0)


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    astronaut = photographs.astronaut()
    return np.stack([astronaut[y : y + 64, x : x + 64] for y in (0, 150, 300) for x in (100, 200, 300)])


def blurred(pictures: np.ndarray, sigma: float) -> np.ndarray:
    return gaussian_filter(pictures.astype(np.float32), (0, sigma, sigma, 0)).astype(np.uint8)


def test_distance_is_zero_for_equal_pictures_and_grows_with_blur(network: LpipsNetwork, pictures: np.ndarray) -> None:
    same = lpips_distance(pictures, pictures, network)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    light, heavy = (lpips_distance(blurred(pictures, sigma), pictures, network) for sigma in (1, 4))
    assert 0 < light.low < light.value < light.high < heavy.low


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_untrained_trunk_orders_known_damage(seed: int) -> None:
    """What damages more is farther; nothing is as far from a photograph as white noise, neither grey nor another photograph.

    The photographs are not among those that the trunk's channels are standardized on.
    """
    network, rng = LpipsNetwork(seed=seed), np.random.default_rng(0)
    rocket, hubble, retina = photographs.rocket(), photographs.hubble_deep_field(), photographs.retina()
    pictures = np.stack(
        [
            picture[y : y + 128, x : x + 128]
            for picture in (rocket, hubble, retina[400:])
            for y in (0, 200)
            for x in (250, 450)
        ]
    )

    def distance(damaged: np.ndarray) -> float:
        return lpips_distance(damaged.clip(0, 255).astype(np.uint8), pictures, network).value

    noisy = [distance(pictures + rng.normal(0, sigma, pictures.shape)) for sigma in (5, 20, 80)]
    blurry = [distance(blurred(pictures, sigma)) for sigma in (1, 3, 9)]
    tinted = [distance(pictures + shift * np.array([-1, 0, 1])) for shift in (10, 40)]
    saturated = distance(255 * rng.integers(0, 2, pictures.shape))
    grey, other = distance(np.full(pictures.shape, 118)), distance(np.roll(pictures, 4, axis=0))
    for series in (noisy, blurry, tinted):
        assert series == sorted(series)
    assert max(blurry[-1], noisy[-2], tinted[-1]) < min(grey, other)
    assert max(grey, other) < saturated


def test_pictures_smaller_than_the_trunk_sees_are_enlarged(network: LpipsNetwork, pictures: np.ndarray) -> None:
    """16-pixel pictures would be smaller than the network's receptive steps; they still tell blur from none."""
    small = pictures[:, ::4, ::4]
    assert lpips_distance(blurred(small, 1), small, network).value > 0
    assert lpips_distance(small, small, network).value == 0


def test_distances_do_not_depend_on_the_batch_size(network: LpipsNetwork, pictures: np.ndarray) -> None:
    noisy = blurred(pictures, 2)
    np.testing.assert_allclose(
        lpips_distances(noisy, pictures, network, batch_size=1), lpips_distances(noisy, pictures, network), rtol=1e-4
    )


def test_a_collapse_has_no_diversity(network: LpipsNetwork, pictures: np.ndarray) -> None:
    collapsed = [np.repeat(picture[None], 3, axis=0) for picture in pictures]
    varied = pictures.reshape(3, 3, 64, 64, 3)
    assert lpips_diversity(collapsed, network).high == pytest.approx(0, abs=1e-9)
    assert lpips_diversity(varied, network).low > 0.01


def test_unpaired_sets_and_single_pictures_are_refused(network: LpipsNetwork, pictures: np.ndarray) -> None:
    with pytest.raises(ValueError, match="do not pair up"):
        lpips_distance(pictures, pictures[:5], network)
    with pytest.raises(ValueError, match="at least 2"):
        lpips_diversity([pictures[:1]], network)
    with pytest.raises(ValueError, match="nothing to average"):
        lpips_diversity([], network)
