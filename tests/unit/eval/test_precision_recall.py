"""Precision, recall, PSNR and SSIM against the libraries that publish them, and what they see."""

import numpy as np
import pytest
import torch

from eval import precision_from_features, recall_from_features, reconstruction_qualities
from eval.torchvision_operators import ensure_torchvision_importable
from tests.unit.eval.damage import blurred, crops, noisy
from tests.unit.eval.feature_sets import PUBLISHED, STAND_IN, correlated, features


@pytest.mark.parametrize(("count", "num_features"), [(48, 8), (300, 16), (48, 2048)])
def test_precision_and_recall_are_torch_fidelitys(count: int, num_features: int) -> None:
    ensure_torchvision_importable()
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    a, b = correlated(count, num_features, 1) + 0.3, correlated(count + 9, num_features, 2)
    precision, recall = calculate_precision_recall_full(a, b)
    assert 0 < precision < 1
    assert 0 < recall < 1
    assert precision_from_features(features(a), features(b)).value == pytest.approx(precision, abs=1e-6)
    assert recall_from_features(features(a), features(b)).value == pytest.approx(recall, abs=1e-6)


def test_a_collapse_costs_recall_and_noise_costs_precision() -> None:
    """Each in three strengths, monotonically."""
    truth, fresh = correlated(200, 8, 1), correlated(200, 8, 2)
    collapsed = [torch.cat([fresh[:kept]] * (200 // kept)) for kept in (200, 40, 8)]
    recalls = [recall_from_features(features(some), features(truth)).value for some in collapsed]
    assert recalls == sorted(recalls, reverse=True)
    assert recalls[-1] < recalls[0] / 2
    noise = torch.randn(fresh.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noised = [fresh + strength * noise for strength in (0, 2, 6)]
    precisions = [precision_from_features(features(some), features(truth)).value for some in noised]
    assert precisions == sorted(precisions, reverse=True)
    assert precisions[-1] < precisions[0] / 2


def test_they_say_what_they_are_and_refuse_what_does_not_compare() -> None:
    a, b = (features(correlated(40, 8, seed), PUBLISHED) for seed in (1, 2))
    metric = precision_from_features(a, b)
    assert (metric.name, metric.low) == ("precision", None)
    assert "depends on the number of pictures (40 and 40)" in str(metric.note)
    with pytest.raises(ValueError, match="different networks"):
        recall_from_features(features(correlated(40, 8, 1), STAND_IN), b)
    with pytest.raises(ValueError, match="recall needs at least 4 pictures"):
        recall_from_features(features(correlated(3, 8, 1), PUBLISHED), b)


def test_psnr_and_ssim_are_torchmetrics() -> None:
    """The mean over pictures of torchmetrics' own: 1e-6. Damage lowers both; equal pictures have 100 dB and 1."""
    ensure_torchvision_importable()
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    truth = crops(6, seed=1)
    damaged = blurred(truth, 1.5)
    found = reconstruction_qualities(damaged, truth, batch_size=4)
    a, b = (torch.from_numpy(pictures).permute(0, 3, 1, 2).float() for pictures in (damaged, truth))
    psnr = peak_signal_noise_ratio(a, b, data_range=255.0, reduction="elementwise_mean", dim=(1, 2, 3))
    assert found[:, 0].mean() == pytest.approx(float(psnr), rel=1e-6)
    ssim = structural_similarity_index_measure(a, b, data_range=255.0)
    assert found[:, 1].mean() == pytest.approx(float(ssim), rel=1e-5)
    for series in ([noisy(truth, strength) for strength in (5, 20, 60)], [blurred(truth, s) for s in (0.7, 1.5, 4)]):
        values = np.stack([reconstruction_qualities(pictures, truth) for pictures in series])
        assert (np.diff(values, axis=0) < 0).all()
    assert reconstruction_qualities(truth, truth).tolist() == [[100, pytest.approx(1)]] * 6
    with pytest.raises(ValueError, match="do not pair up"):
        reconstruction_qualities(truth, truth[:5])
