"""The upsampler's extra losses on predicted pictures, and the critic that learns beside it (equations 4 and 5)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from piti.config import Config
from piti.errors import ConfigError
from piti.models import PatchDiscriminator
from piti.seeds import seed_of
from piti.training.losses import PerceptualLoss, critic_terms, generator_term
from piti.training.workers import Workers


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
            if settings.vgg19 is None and not config.allow_untrained_feature_networks:
                raise ConfigError(
                    "training.upsampler.vgg19 is not set",
                    "download torchvision's vgg19-dcbb9e9d.pth and set training.upsampler.vgg19.path, "
                    "or set perceptual_weight to 0",
                )
            self._perceptual = PerceptualLoss(settings.vgg19, seed=config.seed).to(workers.device)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of(config.seed, "upsampler", "critic"))
            critic = PatchDiscriminator(settings.discriminator_channels, settings.discriminator_layers)
        self._critic = critic.to(workers.device)
        self._optimizer = torch.optim.Adam(self._critic.parameters(), lr=settings.discriminator_learning_rate)

    def starts_at(self, step: int) -> bool:
        """Whether these losses take part in optimizer step number `step`."""
        return step >= self._settings.picture_losses_from_step

    def __call__(self, predicted: Tensor, real: Tensor, mix: Tensor) -> dict[str, Tensor]:
        """Weighted terms (N,) for predicted pictures (with gradient) and real ones, (N, 3, H, W) in [-1, 1].

        As published, the critic takes a step of its own first. mix (N,) in [0, 1): see `critic_terms`.
        """
        terms = {}
        if self._perceptual is not None:
            terms["perceptual"] = self._settings.perceptual_weight * self._perceptual(predicted, real)
        if self._settings.adversarial_weight > 0:
            self._teach_critic(predicted, real, mix)
            self._critic.requires_grad_(False)
            terms["adversarial"] = self._settings.adversarial_weight * generator_term(self._critic, predicted)
            self._critic.requires_grad_(True)
        return terms

    def _teach_critic(self, predicted: Tensor, real: Tensor, mix: Tensor) -> None:
        """One step of the critic; left out where it would not be finite (the generator's step then is, too)."""
        self._optimizer.zero_grad(set_to_none=True)
        wasserstein, penalty = critic_terms(self._critic, real, predicted, mix.to(real.device))
        (wasserstein + self._settings.gradient_penalty * penalty).backward()  # type: ignore[no-untyped-call]
        self._workers.average_gradients(self._critic.parameters())
        gradients = [parameter.grad for parameter in self._critic.parameters() if parameter.grad is not None]
        if bool(torch.nn.utils.get_total_norm(gradients).isfinite()):
            self._optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {"critic": self._critic.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._critic.load_state_dict(state["critic"], strict=True)
        self._optimizer.load_state_dict(state["optimizer"])
