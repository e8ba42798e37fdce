"""What evaluation costs, and how far its figures can be trusted: FID beside other libraries, intervals, extraction, memory.

python benchmarks/evaluation.py fid          5,000 x 2,048 features to FID and KID with intervals, beside torchmetrics and
                                             clean-fid (scipy.linalg.sqrtm; minutes)
python benchmarks/evaluation.py agreement    48 and 10,000 pictures of 2,048 features, beside torchmetrics and clean-fid (minutes)
python benchmarks/evaluation.py coverage     how often intervals hold what they are for, 48, 500 and 5,000 pictures
python benchmarks/evaluation.py extraction   features of pictures, beside the bare network on the same batches
python benchmarks/evaluation.py memory       5,000 pictures to figures: memory on top of the network
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval import EfficientNetFeatures, Features, NetworkIdentity, features_of, fid_from_features, kid_from_features
from eval.fid import frechet_distance, frechet_standard_error
from eval.pictures import mean_metric
from eval.torchvision_operators import ensure_torchvision_importable

MADE_UP = NetworkIdentity("made up", "made_up", "0" * 64, False, "none")


def made_up_features(count: int, num_features: int, seed: int, scale: float = 1.0) -> Tensor:
    """Correlated features that spread over three decades, as a network's do: float64 (count, num_features)."""
    generator = torch.Generator().manual_seed(num_features)
    mix = torch.randn(num_features, num_features, generator=generator, dtype=torch.float64)
    mix *= torch.logspace(0, -3, num_features, dtype=torch.float64)[:, None]
    generator.manual_seed(seed)
    return scale * torch.randn(count, num_features, generator=generator, dtype=torch.float64) @ mix + 0.3


def of(values: Tensor) -> Features:
    return Features(values, MADE_UP, (256, 256))


def timed(what: str, action: Callable[[], float]) -> tuple[float, float]:
    """Its result and the processor seconds it took, which are also printed: with OMP_NUM_THREADS=1 comparable on a busy machine."""
    started, used = time.perf_counter(), time.process_time()
    value = action()
    used = time.process_time() - used
    print(f"{what:<44} {used:8.2f} s of processor, {time.perf_counter() - started:8.2f} s   {value:.10g}", flush=True)
    return value, used


def torchmetrics_fid(a: Tensor, b: Tensor) -> float:
    ensure_torchvision_importable()
    from torchmetrics.image.fid import _compute_fid

    return float(_compute_fid(a.mean(dim=0), torch.cov(a.T), b.mean(dim=0), torch.cov(b.T)))


def cleanfid_fid(a: Tensor, b: Tensor) -> float:
    """Through scipy.linalg.sqrtm, as torch-fidelity."""
    ensure_torchvision_importable()
    from cleanfid.fid import frechet_distance as distance

    return float(distance(*(part for x in (a.numpy(), b.numpy()) for part in (x.mean(axis=0), np.cov(x.T)))))


LIBRARIES = {"torchmetrics": torchmetrics_fid, "clean-fid": cleanfid_fid}


def fid() -> None:
    a, b = made_up_features(5000, 2048, 1), made_up_features(5000, 2048, 2, 1.1)
    torchmetrics_fid(a[:50, :50], b[:50, :50])  # imports
    _, own = timed("FID, ours", lambda: frechet_distance(a, b))
    for name, library in LIBRARIES.items():
        _, theirs = timed(f"FID, {name}", lambda library=library: library(a, b))
        print(f"    {theirs / own:.1f} times as long")
    timed("FID with its interval", lambda: fid_from_features(of(a), of(b)).value)
    timed("KID with its standard error", lambda: kid_from_features(of(a), of(b)).value)


def agreement() -> None:
    for count in (48, 10_000):
        a, b = made_up_features(count, 2048, 1), made_up_features(count, 2048, 2, 1.1)
        own, _ = timed(f"{count} x 2,048, ours", lambda a=a, b=b: frechet_distance(a, b))
        for name, library in LIBRARIES.items():
            other, _ = timed(f"{count} x 2,048, {name}", lambda a=a, b=b, library=library: library(a, b))
            print(f"    relative difference {abs(own - other) / other:.1e}", flush=True)


def coverage(num_features: int = 16) -> None:
    """Pairs of Gaussian sets that differ a little: share of FID's and KID's intervals that hold the mean over all pairs,
    and of a mean's (LPIPS, say, here of skewed distances) that hold the true mean."""
    deviation = torch.arange(1, num_features + 1, dtype=torch.float64).pow(-0.35)
    for count, pairs in ((48, 400), (500, 200), (5000, 60)):
        found: dict[str, list[tuple[float, float]]] = {"FID": [], "KID": []}
        for seed in range(pairs):
            generator = torch.Generator().manual_seed(seed)
            a, b = (
                torch.randn(count, num_features, generator=generator, dtype=torch.float64) * deviation for _ in "ab"
            )
            a = 1.1 * a + 0.1
            error = frechet_standard_error(a, b)
            if error is not None:
                found["FID"].append((frechet_distance(a, b), error))
            metric = kid_from_features(of(a), of(b))
            if metric.standard_error is not None:
                found["KID"].append((metric.value, metric.standard_error))
        distances = np.random.default_rng(count).gamma(4.0, size=(2000, count))
        means = [mean_metric("mean", row) for row in distances]
        held = float(np.mean([metric.low < 4.0 < metric.high for metric in means]))
        print(f"mean, {count} pictures: {held:.1%} of {len(means)}", flush=True)
        for name, rows in found.items():
            values, errors = np.array(rows).T
            held = float((np.abs(values - values.mean()) < 1.96 * errors).mean())
            print(f"{name}, {count} pictures, {num_features} features: {held:.0%} of {pairs}", flush=True)


def noise_pictures(count: int, side: int = 256) -> Iterator[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return (rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(count))


def extraction(count: int = 64) -> None:
    network = EfficientNetFeatures()
    pictures = list(noise_pictures(count))
    batches = [torch.from_numpy(np.stack(pictures[n : n + 32])).permute(0, 3, 1, 2) for n in range(0, count, 32)]

    def bare() -> float:
        with torch.inference_mode():
            return float(sum(network(batch).sum() for batch in batches))

    bare()
    shares = []
    for _ in range(5):  # in turn, since other work goes on
        _, alone = timed("the network alone", bare)
        _, whole = timed("features_of", lambda: float(features_of(pictures, network).values.sum()))
        shares.append(alone / whole)
    print(f"features_of comes to {float(np.median(shares)):.0%} of the network's rate (median of {len(shares)})")


def memory() -> None:
    count = 5000
    network = EfficientNetFeatures()
    features_of(noise_pictures(64, 64), network)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    a, b = (features_of(noise_pictures(count, 64), network) for _ in "ab")
    print(fid_from_features(a, b).value, kid_from_features(a, b).value)
    wide = [of(made_up_features(count, 2048, seed)) for seed in (1, 2)]
    print(fid_from_features(*wide).value, kid_from_features(*wide).value)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{(after - before) / 2**20:.2f} GiB on top of the network")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts: dict[str, Callable[[], None]] = {
        "fid": fid, "agreement": agreement, "coverage": coverage, "extraction": extraction, "memory": memory,
    }  # fmt: skip
    parser.add_argument("what", choices=parts)
    parts[parser.parse_args().what]()
