"""Learned perceptual distance (Zhang et al., CVPR 2018): how far pictures are from the truth, and from each other."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eval.pictures import Metric, NetworkIdentity, PictureArray, Pictures, WeightsError, mean_metric, paired_batches
from eval.torchvision_operators import ensure_torchvision_importable
from eval.weight_files import PublishedWeights, checked_sha256, load_state_dict_file

SMALLEST_SIDE_PIXELS = 32  # below it AlexNet's last layer sees nothing
# Beginnings of sha256: torchvision's alexnet-owt-7be5be79.pth, the older file with the same values, and
# vgg16-397923af.pth. Then torchvision's layer number -> where lpips keeps that layer.
_TRUNKS = {
    "alex": (
        PublishedWeights("LPIPS (AlexNet)", "alexnet", ("7be5be79", "4df8aa71")),
        {0: "slice1.0", 3: "slice2.3", 6: "slice3.6", 8: "slice4.8", 10: "slice5.10"},
    ),
    "vgg": (
        PublishedWeights("LPIPS (VGG16)", "vgg16", ("397923af",)),
        {0: "slice1.0", 2: "slice1.2", 5: "slice2.5", 7: "slice2.7", 10: "slice3.10", 12: "slice3.12",
         14: "slice3.14", 17: "slice4.17", 19: "slice4.19", 21: "slice4.21", 24: "slice5.24", 26: "slice5.26",
         28: "slice5.28"},
    ),
}  # fmt: skip


class PerceptualNetwork(Protocol):
    """Two uint8 (N,3,H,W) -> distances (N,)."""

    identity: NetworkIdentity

    def __call__(self, a: Tensor, b: Tensor) -> Tensor: ...


class LpipsNetwork(nn.Module):
    """LPIPS v0.1 with the lpips package's own linear heads on a trunk of your file.

    Args:
        trunk: file of AlexNet or VGG16 in torchvision's layout (`features.*`).
        sha256: what the file's content must hash to; None accepts any file that fits.
        net: which of the two, by the package's names.
    Raises WeightsError if the file is missing, damaged, of another layout, or has another hash.
    """

    def __init__(
        self, trunk: Path, sha256: str | None = None, device: str = "cpu", net: Literal["alex", "vgg"] = "alex"
    ) -> None:
        super().__init__()
        digest = checked_sha256(trunk, sha256)
        published, layers = _TRUNKS[net]
        self.network = _lpips(net)
        _load_trunk(self.network, trunk, layers, published.slug)
        self.identity = published.identity(digest, "none")
        self.requires_grad_(False)
        self.to(device)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """uint8 (N,3,H,W) twice -> float32 (N,). As in the package, pictures are seen at their own size.

        Raises ValueError for a side below 32 pixels.
        """
        return cast(Tensor, self.network(self._input(a), self._input(b))).flatten()

    def _input(self, pictures: Tensor) -> Tensor:
        if min(pictures.shape[2:]) < SMALLEST_SIDE_PIXELS:
            size = "x".join(str(side) for side in pictures.shape[2:])
            raise ValueError(f"LPIPS needs pictures of at least {SMALLEST_SIDE_PIXELS} pixels a side, not {size}")
        return pictures.to(next(self.network.parameters()).device).float() / 127.5 - 1


def lpips_distances(
    generated: Pictures, truth: Pictures, network: PerceptualNetwork, batch_size: int = 32
) -> NDArray[np.float64]:
    """Distance of each generated picture to the truth at the same position, (N,).

    Raises ValueError if the two differ in number or size.
    """
    with torch.inference_mode():
        pairs = paired_batches(generated, truth, batch_size)
        distances = [network(a, b).double().cpu().numpy() for a, b in pairs]
    return np.concatenate(distances) if distances else np.empty(0)


def lpips_distance(generated: Pictures, truth: Pictures, network: PerceptualNetwork) -> Metric:
    """Mean distance of generated pictures to their truth (same order); 0 for equal pictures, larger is worse.

    Called `lpips` only if `network` is the published one, else `pd_<network>`.
    """
    name = network.identity.figure("lpips", "pd")
    return mean_metric(name, lpips_distances(generated, truth, network), network.identity)


def lpips_diversity(groups: Iterable[PictureArray], network: PerceptualNetwork) -> Metric:
    """Mean distance between pictures drawn from the same condition; 0 if all are the same, larger is more diverse.

    Args:
        groups: for each condition an array uint8 (K,H,W,3), K at least 2. The interval is over conditions.
    Raises ValueError for no groups, or a group of one.
    """
    name = network.identity.figure("lpips_diversity", "pd_diversity")
    return mean_metric(name, diversity_distances(groups, network), network.identity)


def diversity_distances(groups: Iterable[PictureArray], network: PerceptualNetwork) -> NDArray[np.float64]:
    """Mean distance between the pictures of each group, (G,). See `lpips_diversity`."""
    means = []
    for group in groups:
        if len(group) < 2:
            raise ValueError(f"diversity needs at least 2 pictures for a condition, there is {len(group)}")
        first, second = zip(*itertools.combinations(range(len(group)), 2), strict=True)
        means.append(lpips_distances(group[list(first)], group[list(second)], network).mean())
    return np.array(means)


def _lpips(net: str) -> nn.Module:
    ensure_torchvision_importable()
    import lpips

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        # lpips still calls torchvision with the `pretrained` argument; the trunk's weights are set right after.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torchvision\.models")
        return cast(nn.Module, lpips.LPIPS(net=net, version="0.1", pnet_rand=True, verbose=False))


def _load_trunk(network: nn.Module, path: Path, layers: Mapping[int, str], slug: str) -> None:
    state = load_state_dict_file(path)
    wanted = {
        f"features.{number}.{kind}": network.get_submodule(f"net.{place}").get_parameter(kind)
        for number, place in layers.items()
        for kind in ("weight", "bias")
    }
    missing = sorted(wanted.keys() - state.keys())
    wrong = [name for name, parameter in wanted.items() if name in state and state[name].shape != parameter.shape]
    if missing or wrong:
        problem = f"missing {', '.join(missing)}" if missing else f"of the wrong shape: {', '.join(wrong)}"
        raise WeightsError(f"{path} is no {slug} in torchvision's layout ({problem})")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(state[name])
