"""FID and KID against closed forms, against the libraries' own figures, and on real differences between pictures."""

import math

import numpy as np
import pytest
import torch
from skimage import data as photographs
from skimage.transform import resize

from eval import UntrainedFeatures, fid, kid
from eval.fid import fid_from_features, frechet_distance
from eval.kid import kernel_distance, kid_from_features
from eval.torchvision_operators import ensure_torchvision_importable


def crops(count: int, seed: int, side: int = 48) -> np.ndarray:
    """Random crops of real photographs, uint8 (count, side, side, 3)."""
    rng = np.random.default_rng(seed)
    sources = [photographs.astronaut(), photographs.coffee(), photographs.chelsea()]
    sources = [(resize(picture, (200, 200)) * 255).astype(np.uint8) for picture in sources]
    places = rng.integers(0, 200 - side, (count, 2))
    return np.stack([sources[i % 3][y : y + side, x : x + side] for i, (y, x) in enumerate(places)])


def with_noise(pictures: np.ndarray, deviation: float) -> np.ndarray:
    noise = np.random.default_rng(9).normal(0, deviation, pictures.shape)
    return np.clip(pictures + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def extractor() -> UntrainedFeatures:
    return UntrainedFeatures(seed=0)


def gaussian(count: int, mean: float, deviation: np.ndarray, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(count, len(deviation), generator=generator, dtype=torch.float64)
    return normal * torch.from_numpy(deviation) + mean


def test_fid_of_gaussian_features_is_the_closed_form() -> None:
    """d^2 = |mu_a - mu_b|^2 + sum (s_a - s_b)^2 for axis-aligned Gaussians; 40,000 draws estimate it within 2 %."""
    deviation_a, deviation_b = np.array([1.0, 2.0, 0.5, 3.0]), np.array([2.0, 1.0, 0.5, 1.0])
    exact = 4 * 0.7**2 + float(np.square(deviation_a - deviation_b).sum())
    a, b = gaussian(40_000, 0.7, deviation_a, 1), gaussian(40_000, 0.0, deviation_b, 2)
    metric = fid_from_features(a, b, bootstrap_samples=40)
    assert metric.value == pytest.approx(exact, rel=0.02)
    assert metric.note is None


@pytest.mark.parametrize("count", [20, 300])
def test_own_frechet_distance_equals_torchmetrics(count: int) -> None:
    """With fewer and with more pictures than features, the resamples' formula gives the value's figure (1e-6)."""
    rng = np.random.default_rng(3)
    mix = rng.normal(size=(32, 32))
    a = torch.from_numpy(rng.normal(size=(count, 32)) @ mix)
    b = torch.from_numpy(rng.normal(size=(count + 7, 32)) + 0.3)
    assert frechet_distance(a, b) == pytest.approx(fid_from_features(a, b, bootstrap_samples=2).value, rel=1e-6)


def test_fid_of_a_set_with_itself_is_zero_and_grows_with_noise(extractor: UntrainedFeatures) -> None:
    pictures = crops(60, seed=1)
    same = fid(pictures, pictures, extractor, bootstrap_samples=10).value
    noisy = [fid(with_noise(pictures, sigma), pictures, extractor, bootstrap_samples=10).value for sigma in (5, 20, 60)]
    assert same < 1e-6 * noisy[0] + 1e-6
    assert noisy[0] < noisy[1] < noisy[2]


def test_collapse_shows_in_fid_and_kid(extractor: UntrainedFeatures) -> None:
    """One picture sixty times is farther from the truth than sixty other crops of the same photographs."""
    truth, others = crops(60, seed=1), crops(60, seed=2)
    collapsed = np.repeat(others[:1], 60, axis=0)
    for measure in (fid, kid):
        assert measure(collapsed, truth, extractor).low > measure(others, truth, extractor).high


def test_small_sets_are_called_biased_and_large_ones_not() -> None:
    deviation = np.ones(2)
    small = fid_from_features(gaussian(100, 0, deviation, 1), gaussian(3000, 0, deviation, 2), bootstrap_samples=5)
    large = fid_from_features(gaussian(2048, 0, deviation, 1), gaussian(3000, 0, deviation, 2), bootstrap_samples=5)
    assert small.note is not None
    assert "100 pictures" in small.note
    assert large.note is None


def test_fid_interval_covers_the_spread_of_fresh_draws() -> None:
    """The width of the 95 % interval is that of fresh sets of the same size, within a factor of 1.6."""
    deviation = np.ones(8)
    truth = gaussian(400, 0.0, deviation, 100)
    fresh = [
        frechet_distance(gaussian(400, 0.5, deviation, seed), gaussian(400, 0, deviation, 200 + seed))
        for seed in range(200)
    ]
    low, high = np.quantile(fresh, [0.025, 0.975])
    metric = fid_from_features(gaussian(400, 0.5, deviation, 7), truth, bootstrap_samples=200)
    assert 1 / 1.6 < (metric.high - metric.low) / (high - low) < 1.6


def test_kid_is_unbiased_for_equal_distributions() -> None:
    """The mean over 200 pairs of small sets of one distribution is 0 within three standard errors."""
    deviation = np.ones(6)
    values = np.array(
        [
            kernel_distance(gaussian(20, 0, deviation, seed), gaussian(30, 0, deviation, 1000 + seed))
            for seed in range(200)
        ]
    )
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(len(values))
    assert (values < 0).any()


def test_kid_equals_torchmetrics_kernel() -> None:
    ensure_torchvision_importable()
    from torchmetrics.image.kid import poly_mmd

    a, b = gaussian(50, 0.2, np.ones(10), 1), gaussian(50, 0.0, np.ones(10), 2)
    assert kernel_distance(a, b) == pytest.approx(float(poly_mmd(a, b)), rel=1e-9)


def test_kid_interval_covers_the_spread_of_fresh_draws() -> None:
    deviation = np.ones(8)
    fresh = [
        kernel_distance(gaussian(200, 0.3, deviation, seed), gaussian(200, 0, deviation, 500 + seed))
        for seed in range(200)
    ]
    low, high = np.quantile(fresh, [0.025, 0.975])
    metric = kid_from_features(gaussian(200, 0.3, deviation, 7), gaussian(200, 0, deviation, 900))
    assert 1 / 1.6 < (metric.high - metric.low) / (high - low) < 1.6


def test_iterables_of_any_grouping_give_the_same_figure(extractor: UntrainedFeatures) -> None:
    """Single pictures, odd groups and one array are the same set."""
    pictures, truth = crops(20, seed=3), crops(20, seed=4)
    whole = fid(pictures, truth, extractor, bootstrap_samples=5)
    grouped = fid(iter([pictures[0], pictures[1:8], pictures[8:]]), iter(truth), extractor, bootstrap_samples=5)
    assert grouped.value == pytest.approx(whole.value, rel=1e-5)


@pytest.mark.parametrize(
    ("pictures", "says"),
    [
        (np.zeros((4, 8, 8, 3), np.float32), "uint8"),
        (np.zeros((4, 3, 8, 8), np.uint8), "uint8"),
        (np.zeros((1, 8, 8, 3), np.uint8), "at least 2"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((9, 8, 3), np.uint8)], "differ in size"),
        ([], "no pictures"),
    ],
)
def test_what_is_not_a_set_of_pictures_is_refused(pictures: object, says: str, extractor: UntrainedFeatures) -> None:
    with pytest.raises(ValueError, match=says):
        fid(pictures, crops(3, 1, side=8), extractor)  # type: ignore[arg-type]
