"""Perceptual distance orders real damage as people do, and diversity sees a collapse."""

import math

import numpy as np
import pytest

from eval import EfficientNetDistance, lpips_distance, lpips_diversity
from eval.lpips import lpips_distances
from eval.pictures import mean_metric
from tests.unit.eval.damage import blurred, crops, jpeg, noisy, tinted


@pytest.fixture(scope="module")
def network() -> EfficientNetDistance:
    return EfficientNetDistance()


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return crops(12, seed=0)


def test_distance_is_zero_for_equal_pictures_and_says_what_it_is(
    network: EfficientNetDistance, pictures: np.ndarray
) -> None:
    same = lpips_distance(pictures, pictures, network)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert same.name == "pd_efficientnet_lite0"
    assert same.network is network.identity
    assert not network.identity.comparable


@pytest.mark.parametrize("side", [32, 64])
def test_known_damage_is_ordered(network: EfficientNetDistance, side: int) -> None:
    """What damages more is farther, picture by picture; nothing moderate is as far as another photograph is."""
    pictures = crops(6, seed=0, side=side)

    def distances(damaged: np.ndarray) -> np.ndarray:
        return lpips_distances(damaged, pictures, network)

    other = distances(np.roll(pictures, 1, axis=0))
    for series in (
        [noisy(pictures, deviation) for deviation in (5, 20, 60)],
        [blurred(pictures, sigma) for sigma in (0.7, 1.5, 4)],
        [jpeg(pictures, quality) for quality in (90, 40, 5)],
        [tinted(pictures, shift) for shift in (5, 20, 60)],
    ):
        measured = np.stack([distances(damaged) for damaged in series])
        assert (np.diff(measured, axis=0) > 0).all()
        assert (measured[1] < other).all()
        assert measured[2].mean() < other.mean()


def test_distances_do_not_depend_on_the_batch_size(network: EfficientNetDistance, pictures: np.ndarray) -> None:
    damaged = blurred(pictures, 2)
    np.testing.assert_allclose(
        lpips_distances(damaged, pictures, network, batch_size=1),
        lpips_distances(damaged, pictures, network),
        rtol=1e-4,
    )


def test_a_collapse_has_no_diversity(network: EfficientNetDistance, pictures: np.ndarray) -> None:
    collapsed = [np.repeat(picture[None], 3, axis=0) for picture in pictures[:4]]
    varied = pictures.reshape(4, 3, 64, 64, 3)
    assert lpips_diversity(collapsed, network).value == pytest.approx(0, abs=1e-9)
    diversity = lpips_diversity(varied, network)
    assert diversity.name == "pd_diversity_efficientnet_lite0"
    assert diversity.low is not None
    assert diversity.low > 0.1


def test_the_interval_of_a_mean_covers_it() -> None:
    """Of 500 samples of 12 skewed values, at least 90 % of intervals hold the true mean, 1."""
    samples = np.random.default_rng(0).gamma(4, 1 / 4, (500, 12))
    metrics = [mean_metric("x", values) for values in samples]
    assert np.mean([metric.low <= 1 <= metric.high for metric in metrics]) >= 0.9  # type: ignore[operator]


def test_what_cannot_be_averaged_is_refused(network: EfficientNetDistance, pictures: np.ndarray) -> None:
    with pytest.raises(ValueError, match="do not pair up"):
        lpips_distance(pictures, pictures[:5], network)
    with pytest.raises(ValueError, match="at least 2"):
        lpips_diversity([pictures[:1]], network)
    with pytest.raises(ValueError, match="nothing to average"):
        lpips_diversity([], network)
    with pytest.raises(ValueError, match="1 of 2 values are not finite"):
        mean_metric("x", np.array([1.0, math.nan]))
    single = mean_metric("x", np.array([1.0]))
    assert (single.low, single.note) == (None, "one value, so no interval")
