"""FID and KID against closed forms and the libraries' own figures, and on real differences between pictures."""

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch

from eval import EfficientNetFeatures, Features, Metric, features_of, fid_from_features, kid_from_features
from eval.fid import frechet_distance, frechet_standard_error
from eval.torchvision_operators import ensure_torchvision_importable
from tests.unit.eval.damage import blurred, crops, jpeg, noisy, tinted
from tests.unit.eval.feature_sets import PUBLISHED, STAND_IN, correlated, features, gaussian

Measure = Callable[[Features, Features], Metric]


@pytest.fixture(scope="module")
def extractor() -> EfficientNetFeatures:
    return EfficientNetFeatures()


def torchmetrics_fid(a: torch.Tensor, b: torch.Tensor) -> float:
    ensure_torchvision_importable()
    from torchmetrics.image.fid import _compute_fid

    means, covariances = [x.mean(dim=0) for x in (a, b)], [torch.cov(x.T) for x in (a, b)]
    return float(_compute_fid(means[0], covariances[0], means[1], covariances[1]))


def test_fid_of_gaussian_features_is_the_closed_form() -> None:
    """d^2 = |mu_a - mu_b|^2 + sum (s_a - s_b)^2 for axis-aligned Gaussians; 40,000 draws estimate it within 2 %."""
    deviation_a, deviation_b = np.array([1.0, 2.0, 0.5, 3.0]), np.array([2.0, 1.0, 0.5, 1.0])
    exact = 4 * 0.7**2 + float(np.square(deviation_a - deviation_b).sum())
    a, b = gaussian(40_000, 0.7, deviation_a, 1), gaussian(40_000, 0.0, deviation_b, 2)
    metric = fid_from_features(features(a), features(b))
    assert metric.value == pytest.approx(exact, rel=0.02)
    assert metric.low is not None
    assert metric.high is not None
    assert metric.low < exact < metric.high


def libraries_fid(a: torch.Tensor, b: torch.Tensor) -> dict[str, float]:
    """By torchmetrics, torch-fidelity and clean-fid, from features float64 (N,D)."""
    ensure_torchvision_importable()
    from cleanfid.fid import frechet_distance as cleanfid_distance
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    (mu_a, sigma_a), (mu_b, sigma_b) = ((x.mean(dim=0).numpy(), np.cov(x.numpy(), rowvar=False)) for x in (a, b))
    statistics = {"mu": mu_a, "sigma": sigma_a}, {"mu": mu_b, "sigma": sigma_b}
    fidelity = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # clean-fid's call of scipy.linalg.sqrtm
        clean = float(cleanfid_distance(mu_a, sigma_a, mu_b, sigma_b))
    return {"torchmetrics": torchmetrics_fid(a, b), "torch-fidelity": fidelity, "clean-fid": clean}


@pytest.mark.parametrize(("count", "num_features"), [(20, 64), (64, 64), (300, 64)])
def test_fid_equals_torchmetrics_torch_fidelity_and_clean_fid(count: int, num_features: int) -> None:
    """Fewer, as many and more pictures than features: 1e-4 of the libraries' figures."""
    a, b = correlated(count, num_features, 1), correlated(count + 7, num_features, 2) * 1.2 + 0.1
    own = fid_from_features(features(a), features(b)).value
    assert libraries_fid(a, b) == pytest.approx(dict.fromkeys(("torchmetrics", "torch-fidelity", "clean-fid"), own), rel=1e-4)  # fmt: skip


def test_fid_of_48_pictures_with_2048_features_equals_the_libraries() -> None:
    """Turning features changes no distance, so the libraries get coordinates in the 96 directions that occur (their
    square roots of 2048 x 2048 take minutes: `benchmarks/evaluation.py agreement`): 1e-4."""
    a, b = correlated(48, 2048, 1), correlated(48, 2048, 2) * 1.2 + 0.1
    directions = torch.linalg.qr(torch.cat([a, b]).T).Q
    own = fid_from_features(features(a), features(b)).value
    found = libraries_fid(a @ directions, b @ directions)
    assert found == pytest.approx(dict.fromkeys(found, own), rel=1e-4)


@pytest.mark.parametrize("part", [1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("count", [40, 400])
def test_nearly_equal_sets_have_the_closed_form(part: float, count: int) -> None:
    """For b = (1 + e) a the distance is e^2 (|mu|^2 + Tr S): 1e-6 of it, down to distances of 1e-6."""
    a = correlated(count, 96, 5)
    exact = part**2 * float(a.mean(dim=0).square().sum() + torch.cov(a.T).trace())
    assert frechet_distance(a, (1 + part) * a) == pytest.approx(exact, rel=1e-6)


def test_features_that_do_not_vary_or_repeat_are_no_problem() -> None:
    """Singular covariances with more pictures than features: the closed form, and no interval."""
    a = torch.cat([gaussian(200, 0.0, np.ones(3), 1)] * 2, dim=1)
    a = torch.cat([a, torch.full((200, 2), 7.0, dtype=torch.float64)], dim=1)
    metric = fid_from_features(features(a), features(1.1 * a))
    exact = 0.01 * float(a.mean(dim=0).square().sum() + torch.cov(a.T).trace())
    assert metric.value == pytest.approx(exact, rel=1e-6)
    assert metric.low is None


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.3, 1.3)])
def test_fid_interval_covers_the_mean_of_sets_as_large(shift: float, scale: float) -> None:
    """Two pictures a feature, the fewest that have an interval: it covers in at least 90 of 100 cases.

    It does not cover the distance of infinitely many pictures, and `note` says so.
    """
    deviation = torch.arange(1, 25, dtype=torch.float64).pow(-0.35).numpy()
    pairs = [
        (gaussian(48, shift, deviation * scale, seed), gaussian(48, 0.0, deviation, 1000 + seed)) for seed in range(150)
    ]
    values = np.array([frechet_distance(a, b) for a, b in pairs])
    errors = np.array([frechet_standard_error(a, b) for a, b in pairs])
    covered = np.abs(values - values.mean()) < 1.96 * errors
    assert covered.mean() >= 0.9
    assert errors.mean() < 1.6 * values.std()


def test_forty_eight_pictures_have_no_interval_and_every_set_its_bias_note() -> None:
    few = fid_from_features(features(correlated(48, 64, 1)), features(correlated(48, 64, 2)))
    assert (few.low, few.high, few.standard_error) == (None, None, None)
    assert few.note is not None
    assert "biased upwards" in few.note
    assert "48 pictures" in few.note
    assert "no interval: that takes 128 pictures" in few.note
    many = fid_from_features(features(correlated(400, 8, 1)), features(correlated(400, 8, 2)))
    assert many.low is not None
    assert "biased upwards" in str(many.note)


def test_kid_is_unbiased_for_equal_distributions_and_its_interval_covers() -> None:
    """Over 200 pairs of sets of one distribution the mean is 0 within three standard errors, 90 % of intervals hold 0."""
    sets = [
        (gaussian(60, 0, np.ones(6), seed), gaussian(70, 0, np.ones(6), 1000 + seed)) for seed in range(200)
    ]  # fmt: skip
    metrics = [kid_from_features(features(a), features(b)) for a, b in sets]
    values = np.array([metric.value for metric in metrics])
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(len(values))
    assert (values < 0).any()
    assert np.mean([metric.low <= 0 <= metric.high for metric in metrics]) >= 0.9  # type: ignore[operator]


def test_kid_interval_is_as_wide_as_the_spread_of_fresh_draws() -> None:
    """The mean standard error is the deviation of 150 fresh sets, within a factor of 1.3."""
    fresh = [
        kid_from_features(
            features(gaussian(100, 0.3, np.ones(8), seed)), features(gaussian(100, 0, np.ones(8), 500 + seed))
        )
        for seed in range(150)
    ]
    errors = [metric.standard_error for metric in fresh if metric.standard_error is not None]
    assert 1 / 1.3 < np.mean(errors) / np.std([metric.value for metric in fresh]) < 1.3


@pytest.mark.parametrize(("count", "num_features"), [(50, 10), (48, 2048)])
def test_kid_equals_torchmetrics_and_torch_fidelitys_kernel(count: int, num_features: int) -> None:
    ensure_torchvision_importable()
    from torch_fidelity.metric_kid import kernel_mmd
    from torchmetrics.image.kid import poly_mmd

    a, b = correlated(count, num_features, 1) + 0.2, correlated(count, num_features, 2)
    own = kid_from_features(features(a), features(b)).value
    options = {
        "kid_kernel": "poly",
        "kid_kernel_poly_degree": 3,
        "kid_kernel_poly_gamma": None,
        "kid_kernel_poly_coef0": 1,
    }
    fidelity = kernel_mmd(a.numpy(), b.numpy(), **options)
    assert own == pytest.approx(float(poly_mmd(a, b)), rel=1e-6)
    assert own == pytest.approx(float(fidelity), rel=1e-6)


@pytest.mark.parametrize(("network", "names"), [(PUBLISHED, ["fid", "kid"]), (STAND_IN, ["fd_efficientnet_lite0", "kd_efficientnet_lite0"])])  # fmt: skip
def test_only_the_published_network_gives_the_published_name(network: object, names: list[str]) -> None:
    a, b = (features(gaussian(60, 0, np.ones(4), seed), network) for seed in (1, 2))  # type: ignore[arg-type]
    metrics = [fid_from_features(a, b), kid_from_features(a, b)]
    assert [metric.name for metric in metrics] == names
    assert all(metric.network == network for metric in metrics)


@pytest.mark.parametrize("measure", [fid_from_features, kid_from_features])
def test_what_cannot_be_compared_is_refused(measure: Measure) -> None:
    values = gaussian(60, 0, np.ones(4), 1)
    with pytest.raises(ValueError, match="generated pictures are 64x64, the truth is 256x256"):
        measure(features(values, side=64), features(values))
    with pytest.raises(ValueError, match="different networks"):
        measure(features(values, STAND_IN), features(values))
    with pytest.raises(ValueError, match=r"needs at least \d pictures in a set, there are 1"):
        measure(features(values[:1]), features(values))


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_feature_that_is_not_finite_is_an_error(broken: float) -> None:
    values = gaussian(60, 0, np.ones(4), 1)
    values[7, 2] = broken
    with pytest.raises(ValueError, match="features of 1 of 60 pictures are not finite"):
        features(values)


@pytest.mark.parametrize("broken", [math.nan, 1e200])
def test_what_no_distance_can_be_computed_of_is_refused(broken: float) -> None:
    """Not a distance of 0, nor the process's end within a library."""
    values = gaussian(60, 0, np.ones(4), 1)
    values[7, 2] = broken
    with pytest.raises(ValueError, match="not finite, or so large"):
        frechet_distance(values, gaussian(60, 0, np.ones(4), 2))


def test_a_metric_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(ValueError, match="the value of fid is nan"):
        Metric("fid", math.nan)
    with pytest.raises(ValueError, match="one bound only"):
        Metric("fid", 1.0, low=0.5)


def test_known_damage_moves_both_figures_the_right_way(extractor: EfficientNetFeatures) -> None:
    """Noise, blur, JPEG, tint, each in three strengths: monotonic; a collapse is farther than other photographs' crops."""
    truth, others = crops(6, seed=1), crops(6, seed=2)
    reference = features_of(truth, extractor)
    for series in (
        [noisy(truth, deviation) for deviation in (5, 20, 60)],
        [blurred(truth, sigma) for sigma in (0.7, 1.5, 4)],
        [jpeg(truth, quality) for quality in (80, 30, 5)],
        [tinted(truth, shift) for shift in (10, 30, 80)],
    ):
        damaged = [features_of(pictures, extractor) for pictures in series]
        for measure in (fid_from_features, kid_from_features):
            values = [measure(some, reference).value for some in damaged]
            assert values == sorted(values)
    collapsed = features_of(np.repeat(others[:1], 6, axis=0), extractor)
    fresh = features_of(others, extractor)
    for measure in (fid_from_features, kid_from_features):
        assert measure(collapsed, reference).value > measure(fresh, reference).value
    assert fid_from_features(reference, reference).value < 1e-6


def test_iterables_of_any_grouping_give_the_same_features(extractor: EfficientNetFeatures) -> None:
    """Single pictures, odd groups and one array are the same set."""
    pictures = crops(12, seed=3)
    whole = features_of(pictures, extractor)
    grouped = features_of(iter([pictures[0], pictures[1:8], pictures[8:]]), extractor, batch_size=5)
    torch.testing.assert_close(grouped.values, whole.values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("pictures", "says"),
    [
        (np.zeros((4, 8, 8, 3), np.float32), "uint8"),
        (np.zeros((4, 3, 8, 8), np.uint8), "uint8"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((9, 8, 3), np.uint8)], "differ in size"),
        ([], "no pictures"),
    ],
)
def test_what_is_not_a_set_of_pictures_is_refused(pictures: object, says: str, extractor: EfficientNetFeatures) -> None:
    with pytest.raises(ValueError, match=says):
        features_of(pictures, extractor)  # type: ignore[arg-type]
