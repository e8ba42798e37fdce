"""Learned perceptual distance (Zhang et al., CVPR 2018): how far pictures are from the truth, and from each other."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from eval.calibration import calibration_photographs, standardize_on
from eval.features import checked_sha256, load_state_dict_file, parameters_sha256
from eval.pictures import Metric, PictureArray, Pictures, WeightsError, batches, mean_with_bounds
from eval.torchvision_operators import ensure_torchvision_importable

SMALLEST_SIDE_PIXELS = 64  # the patches LPIPS was trained on; AlexNet's last layer sees nothing below 32
# torchvision's alexnet-owt-7be5be79.pth, and the older file with the same values.
ALEXNET_SHA256_PREFIXES = ("7be5be79", "4df8aa71")
# torchvision's layer number -> where lpips keeps that layer.
_TRUNK_LAYERS = {0: "slice1.0", 3: "slice2.3", 6: "slice3.6", 8: "slice4.8", 10: "slice5.10"}


class PerceptualNetwork(Protocol):
    """Two uint8 (N,3,H,W) -> distances (N,)."""

    name: str
    weights_sha256: str
    comparable: bool

    def __call__(self, a: Tensor, b: Tensor) -> Tensor: ...


class LpipsNetwork(nn.Module):
    """LPIPS v0.1 with an AlexNet trunk and the lpips package's own linear heads.

    Args:
        trunk: AlexNet in torchvision's layout (`features.*`); None gives a seeded untrained trunk, its channels
            standardized on photographs (`eval.calibration`). Its distances grow with noise, blur and wrong colours,
            but are not comparable with published ones.
        sha256: what the trunk file's content must hash to; None accepts any file that fits.
        seed: of the untrained trunk.
    Raises WeightsError if the file is missing, damaged, of another layout, or has another hash.
    """

    def __init__(
        self, trunk: Path | None = None, sha256: str | None = None, seed: int = 0, device: str = "cpu"
    ) -> None:
        super().__init__()
        self.network = _lpips_alexnet()
        if trunk is None:
            _seed_trunk(self.network, seed)
            self.weights_sha256 = parameters_sha256(self.network)
            self.comparable = False
            self.name = f"LPIPS (AlexNet trunk untrained, seed {seed}, standardized on photographs)"
        else:
            self.weights_sha256 = checked_sha256(trunk, sha256)
            _load_trunk(self.network, trunk)
            self.comparable = self.weights_sha256.startswith(ALEXNET_SHA256_PREFIXES)
            self.name = (
                "LPIPS (AlexNet)" if self.comparable else "LPIPS (AlexNet with weights other than the published)"
            )
        self.requires_grad_(False)
        self.to(device)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """uint8 (N,3,H,W) twice -> float32 (N,). Sides below 64 pixels are enlarged to 64, bilinearly."""
        return cast(Tensor, self.network(self._input(a), self._input(b))).flatten()

    def _input(self, pictures: Tensor) -> Tensor:
        x = pictures.to(next(self.network.parameters()).device).float() / 127.5 - 1
        shortest = min(x.shape[2:])
        if shortest < SMALLEST_SIDE_PIXELS:
            height, width = (-(-side * SMALLEST_SIDE_PIXELS // shortest) for side in x.shape[2:])
            x = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)
        return x


def lpips_distances(
    generated: Pictures, truth: Pictures, network: PerceptualNetwork, batch_size: int = 32
) -> NDArray[np.float64]:
    """Distance of each generated picture to the truth at the same position, (N,).

    Raises ValueError if the two differ in number or size.
    """
    distances: list[NDArray[np.float64]] = []
    with torch.inference_mode():
        for a, b in itertools.zip_longest(batches(generated, batch_size), batches(truth, batch_size)):
            if a is None or b is None or a.shape != b.shape:
                shapes = [None if x is None else tuple(x.shape) for x in (a, b)]
                raise ValueError(f"generated pictures and truth do not pair up: {shapes[0]} and {shapes[1]}")
            distances.append(network(a, b).double().cpu().numpy())
    return np.concatenate(distances) if distances else np.empty(0)


def lpips_distance(
    generated: Pictures, truth: Pictures, network: PerceptualNetwork, *, bootstrap_samples: int = 200, seed: int = 0
) -> Metric:
    """Mean distance of generated pictures to their truth (same order); 0 for equal pictures, larger is worse."""
    return mean_with_bounds(lpips_distances(generated, truth, network), bootstrap_samples, seed)


def lpips_diversity(
    groups: Iterable[PictureArray], network: PerceptualNetwork, *, bootstrap_samples: int = 200, seed: int = 0
) -> Metric:
    """Mean distance between pictures drawn from the same condition; 0 if all are the same, larger is more diverse.

    Args:
        groups: for each condition an array uint8 (K,H,W,3), K at least 2. The bootstrap resamples conditions.
    Raises ValueError for no groups, or a group of one.
    """
    means = []
    for group in groups:
        if len(group) < 2:
            raise ValueError(f"diversity needs at least 2 pictures for a condition, there is {len(group)}")
        first, second = zip(*itertools.combinations(range(len(group)), 2), strict=True)
        means.append(lpips_distances(group[list(first)], group[list(second)], network).mean())
    return mean_with_bounds(np.array(means), bootstrap_samples, seed)


def _lpips_alexnet() -> nn.Module:
    ensure_torchvision_importable()
    import lpips

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        # lpips still calls torchvision with the `pretrained` argument; the trunk's weights are set right after.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torchvision\.models")
        return cast(nn.Module, lpips.LPIPS(net="alex", version="0.1", pnet_rand=True, verbose=False))


def _seed_trunk(network: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for place in _TRUNK_LAYERS.values():
        layer = cast(nn.Conv2d, network.get_submodule(f"net.{place}"))
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
        nn.init.zeros_(cast(Tensor, layer.bias))
    photographs = calibration_photographs().double() / 127.5 - 1
    scaled = cast(nn.Module, network.scaling_layer)(photographs)
    slices = (cast(nn.Sequential, network.get_submodule(f"net.slice{number}")) for number in range(1, 6))
    standardize_on(scaled, itertools.chain.from_iterable(slices))


def _load_trunk(network: nn.Module, path: Path) -> None:
    state = load_state_dict_file(path)
    wanted = {
        f"features.{number}.{kind}": network.get_submodule(f"net.{place}").get_parameter(kind)
        for number, place in _TRUNK_LAYERS.items()
        for kind in ("weight", "bias")
    }
    missing = sorted(wanted.keys() - state.keys())
    wrong = [name for name, parameter in wanted.items() if name in state and state[name].shape != parameter.shape]
    if missing or wrong:
        problem = f"missing {', '.join(missing)}" if missing else f"of the wrong shape: {', '.join(wrong)}"
        raise WeightsError(f"{path} is no AlexNet in torchvision's layout ({problem})")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(state[name])
