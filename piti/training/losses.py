"""The upsampler's losses on the predicted picture: perceptual (equation 4) and adversarial (equation 5).

Definitions are PITI's (vgg.py, adv.py). All weights belong to the config, none to this file. Predicted pictures are
clamped to [-1, 1] before they are judged, as published.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from piti import storage
from piti.config import WeightsRef
from piti.errors import CheckpointError
from piti.models.weight_files import read_weights

_MEAN = (0.485, 0.456, 0.406)  # of ImageNet, as torchvision's networks expect
_DEVIATION = (0.229, 0.224, 0.225)
_CONVOLUTIONS = {"features.0": (3, 64), "features.2": (64, 64), "features.5": (64, 128), "features.7": (128, 128)}


class PerceptualLoss(nn.Module):
    """Squared distance of VGG19's conv2_2 features (before their ReLU).

    `weights` names a file of torchvision's vgg19 state_dict. None: a network of the same shape with seeded random
    weights (He initialisation), for demonstrations; `name` says so. Its weights are frozen; they belong in no
    checkpoint and follow `.to(device)`. Raises CheckpointError if the file is missing, damaged, of another hash
    than pinned or not VGG19's.
    """

    def __init__(self, weights: WeightsRef | None = None, seed: int = 0) -> None:
        super().__init__()
        self.name = f"vgg19-conv2_2-untrained-seed-{seed}" if weights is None else "vgg19-conv2_2"
        self._layers = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1, device="meta") for before, after in _CONVOLUTIONS.values()
        )
        state = _seeded_weights(seed) if weights is None else _read_vgg19(weights)
        for layer, key in zip(self._layers, _CONVOLUTIONS, strict=True):
            layer.load_state_dict(
                {"weight": state[f"{key}.weight"], "bias": state[f"{key}.bias"]}, strict=True, assign=True
            )
        self.register_buffer("_mean", torch.tensor(_MEAN).view(1, 3, 1, 1))
        self.register_buffer("_deviation", torch.tensor(_DEVIATION).view(1, 3, 1, 1))
        self._mean: Tensor
        self._deviation: Tensor
        self.requires_grad_(False)
        self.eval()

    def features(self, images: Tensor) -> Tensor:
        """conv2_2 features (N, 128, H/2, W/2) of images (N, 3, H, W) in [-1, 1]."""
        x = ((images + 1) / 2 - self._mean) / self._deviation
        x = F.relu(self._layers[0](x))
        x = F.max_pool2d(F.relu(self._layers[1](x)), 2)
        x = F.relu(self._layers[2](x))
        result: Tensor = self._layers[3](x)
        return result

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Mean squared feature distance, (N,); gradient to `predicted` (N, 3, H, W), clamped, but not to `target`."""
        with torch.no_grad():
            wanted = self.features(target)
        return (self.features(predicted.clamp(-1, 1)) - wanted).square().flatten(1).mean(dim=1)


class CriticTerms(NamedTuple):
    """What a WGAN-GP critic minimises: `wasserstein + gradient_penalty_weight * penalty`. Both scalars."""

    wasserstein: Tensor
    penalty: Tensor


def critic_terms(discriminator: nn.Module, real: Tensor, predicted: Tensor, mix: Tensor) -> CriticTerms:
    """The discriminator's terms (Gulrajani et al., 2017), no gradient to the generator.

    real, predicted (N, 3, H, W) in [-1, 1]; mix (N,) uniform in [0, 1]: the share of the real picture in the mixture
    at which the score's gradient, summed over the score map, should have norm 1.
    """
    fake = predicted.detach().clamp(-1, 1)
    wasserstein = (discriminator(fake) - discriminator(real)).mean()
    share = mix.view(-1, 1, 1, 1).to(real.dtype)
    between = (fake * (1 - share) + real * share).requires_grad_(True)
    score = discriminator(between)
    (gradient,) = torch.autograd.grad(score.sum(), between, create_graph=True)
    penalty = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
    return CriticTerms(wasserstein, penalty)


def generator_term(discriminator: nn.Module, predicted: Tensor) -> Tensor:
    """The generator's adversarial term, (N,): minus the mean score of its clamped picture."""
    scores: Tensor = discriminator(predicted.clamp(-1, 1))
    return -scores.flatten(1).mean(dim=1)


def _seeded_weights(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, (before, after) in _CONVOLUTIONS.items():
        deviation = (2 / (9 * before)) ** 0.5
        state[f"{key}.weight"] = torch.randn(after, before, 3, 3, generator=generator) * deviation
        state[f"{key}.bias"] = torch.zeros(after)
    return state


def _read_vgg19(weights: WeightsRef) -> dict[str, Tensor]:
    path = weights.path
    remedy = "get torchvision's vgg19 weights (vgg19-dcbb9e9d.pth) and set training.upsampler.vgg19.path"
    if not storage.exists(path):
        raise CheckpointError(f"there are no VGG19 weights at {path}", remedy)
    if weights.sha256 is not None and (digest := storage.sha256_file(path)) != weights.sha256:
        raise CheckpointError(f"{path} has sha256 {digest}, the config pins {weights.sha256}", remedy)
    with tempfile.TemporaryDirectory() as folder:
        content = read_weights(storage.fetch(path, Path(folder) / storage.name(path)), path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not torchvision's VGG19", remedy)
    shapes: dict[str, tuple[int, ...]] = {
        f"{key}.weight": (after, before, 3, 3) for key, (before, after) in _CONVOLUTIONS.items()
    }
    shapes |= {f"{key}.bias": (after,) for key, (_, after) in _CONVOLUTIONS.items()}
    wrong = [key for key, shape in shapes.items() if tuple(getattr(content.get(key), "shape", ())) != shape]
    if wrong:
        raise CheckpointError(f"{path} is not torchvision's VGG19 ({', '.join(wrong)} missing or misshaped)", remedy)
    return {key: content[key].float() for key in shapes}
