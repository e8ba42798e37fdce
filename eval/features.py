"""Feature extractors: networks that turn pictures into the vectors whose distributions FID and KID compare."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from eval.pictures import NetworkIdentity, Pictures, WeightsError, batches
from eval.resize import ResizeProtocol, resize
from eval.torchvision_operators import ensure_torchvision_importable
from eval.weight_files import checked_sha256, load_state_dict_file, one_line

# weights-inception-2015-12-05-6726825d.pth of toshas/torch-fidelity, converted from the TensorFlow Inception of FID.
# Published files carry the beginning of their sha256 in their name; figures are comparable with this one only.
INCEPTION_SHA256_PREFIX = "6726825d"
INCEPTION_SIDE_PIXELS = 299


class FeatureExtractor(Protocol):
    """uint8 (N,3,H,W) -> float32 (N, num_features)."""

    identity: NetworkIdentity
    num_features: int

    def __call__(self, pictures: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Features:
    """Features of a set of pictures. Raises ValueError where they are not all finite, or not a matrix.

    Args:
        values: float64 (N, D) on the CPU, in the pictures' order.
        network: what made them.
        picture_size: height and width of the pictures in pixels.
    """

    values: Tensor
    network: NetworkIdentity
    picture_size: tuple[int, int]

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.dtype != torch.float64:
            raise ValueError(f"features must be float64 (N, D), not {self.values.dtype} {tuple(self.values.shape)}")
        broken = int((~self.values.isfinite()).any(dim=1).sum())
        if broken:
            raise ValueError(f"features of {broken} of {len(self.values)} pictures are not finite")

    def __len__(self) -> int:
        return len(self.values)

    @property
    def size_in_words(self) -> str:
        """Height and width of the pictures: `256x256`."""
        return "x".join(str(side) for side in self.picture_size)


def check_comparable_sets(generated: Features, truth: Features, figure: str, fewest: int) -> None:
    """Raises ValueError where two sets differ in network or size of pictures, or one has fewer than `fewest`."""
    if generated.network != truth.network:
        raise ValueError(
            f"{figure}: features of different networks: {generated.network.name} ({generated.network.resize}) and "
            f"{truth.network.name} ({truth.network.resize})"
        )
    if generated.picture_size != truth.picture_size:
        raise ValueError(
            f"{figure}: generated pictures are {generated.size_in_words}, the truth is {truth.size_in_words} pixels: "
            "bring them to one size"
        )
    for features in (generated, truth):
        if len(features) < fewest:
            raise ValueError(f"{figure} needs at least {fewest} pictures in a set, there are {len(features)}")


def features_of(pictures: Pictures, extractor: FeatureExtractor, batch_size: int = 32) -> Features:
    """Features of pictures. Raises ValueError for no pictures, and for features that are not finite."""
    size: tuple[int, int] | None = None
    parts = []
    with torch.inference_mode():
        for batch in batches(pictures, batch_size):
            size = (batch.shape[2], batch.shape[3])
            parts.append(extractor(batch).double().cpu())
    if size is None:
        raise ValueError("there are no pictures")
    return Features(torch.cat(parts), extractor.identity, size)


class InceptionFeatures(nn.Module):
    """The 2048 pooled features of the InceptionV3 that FID is defined with, from a weights file.

    Args:
        path: the file in torch-fidelity's layout.
        sha256: what the file's content must hash to; None accepts any file that fits.
        resize: how pictures get to 299x299, see `eval.resize`.
    Raises WeightsError if the file is missing, damaged, of another layout, or has another hash.
    """

    num_features = 2048

    def __init__(
        self, path: Path, sha256: str | None = None, resize: ResizeProtocol = "torch-fidelity", device: str = "cpu"
    ) -> None:
        super().__init__()
        ensure_torchvision_importable()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        digest = checked_sha256(path, sha256)
        load_state_dict_file(path)  # refuses a pickle with code in it, which the constructor below would run
        try:
            network = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path)
            )
        except RuntimeError as error:
            raise WeightsError(f"{path} is no InceptionV3 in torch-fidelity's layout: {one_line(error)}") from error
        self.network: nn.Module = network.to(device)
        published = digest.startswith(INCEPTION_SHA256_PREFIX)
        self.identity = NetworkIdentity(
            "InceptionV3 (FID)" if published else "InceptionV3 with weights other than the published",
            "inception_v3" if published else f"inception_v3_{digest[:8]}",
            digest,
            published,
            resize,
        )
        self._protocol = resize

    def forward(self, pictures: Tensor) -> Tensor:
        device = next(self.network.parameters()).device
        x = (resize(pictures.to(device), INCEPTION_SIDE_PIXELS, self._protocol) - 128) / 128
        for layer in _up_to_pooling(self.network):
            x = layer(x)
        return x.flatten(1)


def _up_to_pooling(network: nn.Module) -> Iterator[nn.Module]:
    """torch-fidelity's layers in the order that its own `forward` calls them in, which begins with a resize."""
    for name, layer in network.named_children():
        yield layer
        if name == "AvgPool":
            return
