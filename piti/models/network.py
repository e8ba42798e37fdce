"""Encoder and decoder together: the network that is trained, saved and sampled from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from piti.config import ModelConfig
from piti.models.encoder import Latent, TaskEncoder, laid_out
from piti.models.unet import Decoder


class PITIModel(nn.Module):
    """x_0 = D(E(x_0, y)): `encoder` reads the condition y, `decoder` predicts noise and variance."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = TaskEncoder(config)
        self.decoder = Decoder(config)

    def encode(self, condition: Tensor | None, batch_size: int = 1, condition_mask: Tensor | None = None) -> Latent:
        """The condition's latent for `forward(latent=...)`, so that sampling encodes once instead of at every step.

        condition (N, C, S, S) in [-1, 1], or None: the null condition (all ones), encoded once and repeated
        `batch_size` times. condition_mask (N,) bool: False replaces that picture's condition by the null condition.
        """
        if condition is None:
            config = self.config
            shape = (1, config.condition_channels, config.condition_size, config.condition_size)
            null: Latent = self.encoder(torch.ones(shape, device=self.encoder.cls_token.device))
            return Latent(*(part.expand(batch_size, *part.shape[1:]) for part in null))
        if condition_mask is not None:
            condition = torch.where(condition_mask[:, None, None, None], condition, torch.ones_like(condition))
        latent: Latent = self.encoder(condition)
        return latent

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        condition: Tensor | None = None,
        low_res: Tensor | None = None,
        condition_mask: Tensor | None = None,
        latent: Latent | None = None,
    ) -> Tensor:
        """Predict noise and variance: (N, 6, H, W), float32 for float32 weights even under autocast.

        x_t (N, 3, H, W); t (N,) time in 0..1000. condition, condition_mask: see `encode`; condition None is the
        null condition. low_res (N, 3, h, w) in [-1, 1]: upsamplers only. latent: the result of `encode`, in place
        of a condition. Raises ValueError if both are given.
        """
        if latent is None:
            latent = self.encode(condition, len(x_t), condition_mask)
        elif condition is not None:
            raise ValueError("give either a condition or its latent, not both")
        result: Tensor = self.decoder(x_t, t, latent, low_res)
        return result


def build_model(config: ModelConfig, seed: int | None = None) -> PITIModel:
    """A fresh network on the CPU, in float32 and training mode.

    With `seed`, the weights depend on config and seed alone, and the global random state does not change. With None,
    the global random state is used. Raises ConfigError if heads do not divide channels.
    """
    if seed is None:
        model = PITIModel(config)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model = PITIModel(config)
    return laid_out(model)


def round_weights(model: PITIModel) -> PITIModel:
    """Store the weights of convolutions and linear layers in bf16, in place, for sampling under bf16 autocast.

    Autocast rounds these weights anew in every forward pass; rounding them once changes no result. Norms, the time
    embedding and the float32 last layer stay as they are. Not for training: small updates would be lost.
    """
    decoder = model.decoder
    for part in (model.encoder, decoder.input_blocks, decoder.middle_block, decoder.output_blocks):
        for module in part.modules():
            if isinstance(module, nn.Conv2d | nn.Conv1d | nn.Linear):
                module.to(torch.bfloat16)
    return model
