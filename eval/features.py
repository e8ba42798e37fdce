"""Feature extractors: networks that turn pictures into the vectors whose distributions FID and KID compare."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from eval.pictures import Pictures, WeightsError, batches
from eval.torchvision_operators import ensure_torchvision_importable

# Published files carry the beginning of their sha256 in their name; figures are comparable with this one only:
# weights-inception-2015-12-05-6726825d.pth of toshas/torch-fidelity, converted from the TensorFlow Inception of FID.
INCEPTION_SHA256_PREFIX = "6726825d"


class FeatureExtractor(Protocol):
    """uint8 (N,3,H,W) -> float32 (N, num_features).

    `comparable` says whether figures made with it may be compared with published ones.
    """

    name: str
    weights_sha256: str
    comparable: bool
    num_features: int

    def __call__(self, pictures: Tensor) -> Tensor: ...


class InceptionFeatures(nn.Module):
    """The 2048 pooled features of the InceptionV3 that FID is defined with, from a weights file.

    Args:
        path: the file in torch-fidelity's layout.
        sha256: what the file's content must hash to; None accepts any file that fits.
    Raises WeightsError if the file is missing, damaged, of another layout, or has another hash.
    """

    num_features = 2048

    def __init__(self, path: Path, sha256: str | None = None, device: str = "cpu") -> None:
        super().__init__()
        ensure_torchvision_importable()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self.weights_sha256 = checked_sha256(path, sha256)
        load_state_dict_file(path)  # refuses a pickle with code in it, which the constructor below would run
        try:
            network = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path)
            )
        except RuntimeError as error:
            raise WeightsError(f"{path} is no InceptionV3 in torch-fidelity's layout: {one_line(error)}") from error
        self.network: nn.Module = network.to(device)
        self.comparable = self.weights_sha256.startswith(INCEPTION_SHA256_PREFIX)
        self.name = "InceptionV3 (FID)" if self.comparable else "InceptionV3 with weights other than the published"

    def forward(self, pictures: Tensor) -> Tensor:
        device = next(self.network.parameters()).device
        return cast(Tensor, self.network(pictures.to(device))[0])


class UntrainedFeatures(nn.Module):
    """A small convolutional network with seeded random weights, for where the published weights cannot be had.

    It sees colour, contrast and texture at four scales, so that noise, blur and mode collapse show; but its
    figures mean something only beside figures from the same seed, and it says so (`comparable` is False).
    """

    widths = (16, 32, 32, 32)
    num_features = sum(widths)
    comparable = False

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.layers = nn.ModuleList()
        channels = 3
        for width in self.widths:
            layer: nn.Conv2d = skip_init(nn.Conv2d, channels, width, 3, stride=2, padding=1, bias=False)  # type: ignore[no-untyped-call]
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            self.layers.append(layer)
            channels = width
        self.requires_grad_(False)
        self.name = f"untrained network (seed {seed})"
        self.weights_sha256 = parameters_sha256(self)

    def forward(self, pictures: Tensor) -> Tensor:
        x = pictures.float() / 127.5 - 1
        pooled = []
        for layer in self.layers:
            x = F.relu(layer(x))
            pooled.append(x.mean(dim=(2, 3)))
        return torch.cat(pooled, dim=1)


def features_of(pictures: Pictures, extractor: FeatureExtractor, batch_size: int = 32) -> Tensor:
    """Features float64 (N, num_features) on the CPU, in the pictures' order. Raises ValueError for no pictures."""
    with torch.inference_mode():
        parts = [extractor(batch).double().cpu() for batch in batches(pictures, batch_size)]
    if not parts:
        raise ValueError("there are no pictures")
    return torch.cat(parts)


def checked_sha256(path: Path, expected: str | None) -> str:
    """Hex sha256 of a file. Raises WeightsError if it is missing or has another hash than expected."""
    try:
        with open(path, "rb") as stream:
            actual = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"weights file {path} cannot be read ({error.strerror})") from error
    if expected is not None and actual != expected:
        raise WeightsError(f"{path} has sha256 {actual}, expected {expected}")
    return actual


def load_state_dict_file(path: Path) -> dict[str, Tensor]:
    """Read a file of named tensors, never running code from it. Raises WeightsError if it is not one."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{path} is not a readable file of weights: {one_line(error)}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} does not hold a plain mapping of names to tensors")
    return cast(dict[str, Tensor], state)


def parameters_sha256(network: nn.Module) -> str:
    """Hex sha256 over names, shapes and values of a network's state, to pin seeded weights as files are pinned."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def one_line(error: Exception, limit: int = 300) -> str:
    """An exception's text on one line of bounded length."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
