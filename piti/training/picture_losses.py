"""The upsampler's losses on the predicted picture, and the critic that learns beside it (equations 4 and 5).

Definitions are PITI's (vgg.py, adv.py). All weights belong to the config, none to this file. Predicted pictures are
clamped to [-1, 1] before they are judged, as published.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from piti.config import Config, WeightsRef
from piti.errors import CheckpointError, ConfigError
from piti.models import PatchDiscriminator
from piti.models.weight_files import read_weights
from piti.seeds import seed_of
from piti.training.optimizers import adam, step_where
from piti.training.workers import Workers
from piti.weights import open_weights

_KEY, _ORIGIN = "training.upsampler.vgg19", "torchvision's vgg19-dcbb9e9d.pth"
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
    """What a WGAN-GP critic minimises: `wasserstein + gradient_penalty_weight * penalty`. Both (N,)."""

    wasserstein: Tensor
    penalty: Tensor


def critic_terms(discriminator: nn.Module, real: Tensor, predicted: Tensor, mix: Tensor) -> CriticTerms:
    """The discriminator's terms of each picture (Gulrajani et al., 2017), no gradient to the generator.

    real, predicted (N, 3, H, W) in [-1, 1]; mix (N,) uniform in [0, 1]: the share of the real picture in the mixture
    at which the score's gradient, summed over the score map, should have norm 1.
    """
    fake = predicted.detach().clamp(-1, 1)
    wasserstein = (discriminator(fake) - discriminator(real)).flatten(1).mean(dim=1)
    share = mix.view(-1, 1, 1, 1).to(real.dtype)
    between = (fake * (1 - share) + real * share).requires_grad_(True)
    score = discriminator(between)
    (gradient,) = torch.autograd.grad(score.sum(), between, create_graph=True)
    penalty = (gradient.flatten(1).norm(dim=1) - 1).square()
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
    with open_weights(weights, _KEY, _ORIGIN) as file:
        content = read_weights(file.path, weights.path)
    shapes: dict[str, tuple[int, ...]] = {}
    for key, (before, after) in _CONVOLUTIONS.items():
        shapes |= {f"{key}.weight": (after, before, 3, 3), f"{key}.bias": (after,)}
    entries = content if isinstance(content, dict) else {}
    wrong = [key for key, shape in shapes.items() if tuple(getattr(entries.get(key), "shape", ())) != shape]
    if wrong:
        raise CheckpointError(
            f"{weights.path} is not torchvision's VGG19 ({', '.join(wrong)} missing or misshaped)",
            f"get {_ORIGIN} and set {_KEY}.path",
        )
    return {key: entries[key].float() for key in shapes}


class PictureLosses:
    """Perceptual and adversarial terms, weighted. The critic and its optimizer survive in checkpoints.

    A term of weight 0 costs nothing. Raises ConfigError where the perceptual term has no VGG19 weights and
    untrained ones are not allowed, CheckpointError where the file is wrong.
    """

    def __init__(self, config: Config, workers: Workers) -> None:
        settings = config.training.upsampler
        self._settings = settings
        self._workers = workers
        self._perceptual: PerceptualLoss | None = None
        if settings.perceptual_weight > 0:
            if settings.vgg19 is None and not config.allow_stand_in_networks:
                raise ConfigError(
                    f"{_KEY} is not set", f"download {_ORIGIN} and set {_KEY}.path, or set perceptual_weight to 0"
                )
            self._perceptual = PerceptualLoss(settings.vgg19, seed=config.seed).to(workers.device)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of(config.seed, "upsampler", "critic"))
            critic = PatchDiscriminator(settings.discriminator_channels, settings.discriminator_layers)
        self._critic = critic.to(workers.device)
        self._optimizer = adam(self._critic.parameters(), learning_rate=settings.discriminator_learning_rate)

    def starts_at(self, step: int) -> bool:
        """Whether these losses take part in optimizer step number `step`."""
        return step >= self._settings.picture_losses_from_step

    @property
    def has_critic(self) -> bool:
        return self._settings.adversarial_weight > 0

    def __call__(self, predicted: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Weighted terms (N,) for predicted pictures (with gradient) and real ones, (N, 3, H, W) in [-1, 1]."""
        terms = {}
        if self._perceptual is not None:
            terms["perceptual"] = self._settings.perceptual_weight * self._perceptual(predicted, real)
        if self.has_critic:
            self._critic.requires_grad_(False)
            terms["adversarial"] = self._settings.adversarial_weight * generator_term(self._critic, predicted)
            self._critic.requires_grad_(True)
        return terms

    def accumulate_critic(self, predicted: Tensor, real: Tensor, mix: Tensor, weights: Tensor) -> None:
        """Add a microbatch's gradient to the critic's: the sum of its pictures' losses times `weights` (N,).

        mix (N,) in [0, 1): see `critic_terms`.
        """
        wasserstein, penalty = critic_terms(self._critic, real, predicted, mix)
        loss = wasserstein + self._settings.gradient_penalty * penalty
        (loss * weights).sum().backward()  # type: ignore[no-untyped-call]

    def step_critic(self) -> None:
        """The critic's one step of this optimizer step, with its gradient averaged over the workers.

        Left out where the gradient is not finite: the generator's step then is not, either.
        """
        self._workers.average_gradients(self._critic.parameters())
        gradients = [parameter.grad for parameter in self._critic.parameters() if parameter.grad is not None]
        step_where(torch.nn.utils.get_total_norm(gradients).isfinite(), self._optimizer)

    def state_dict(self) -> dict[str, Any]:
        return {"critic": self._critic.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._critic.load_state_dict(state["critic"], strict=True)
        self._optimizer.load_state_dict(state["optimizer"])
