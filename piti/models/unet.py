"""The decoder: GLIDE's U-Net, which predicts noise and variance from a noisy picture, a time and condition tokens.

Parameter names and shapes are those of the published files (openai/glide-text2im, PITI's `decoder.*`), so the
indices inside the `nn.Sequential`s are part of the format.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from piti.config import ModelConfig
from piti.errors import ConfigError
from piti.models.encoder import Latent

IMAGE_CHANNELS = 3
OUTPUT_CHANNELS = 6  # predicted noise, then the variance's place between its bounds
_NORM_GROUPS = 32

M = TypeVar("M", bound=nn.Module)


def zeroed(module: M) -> M:
    """`module` with all parameters zero: a residual branch that begins as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoids of `t` (N,), which may be fractional: (N, width) float32, cosines first."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32) / half).to(t.device)
    angles = t[:, None].float() * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class GroupNorm(nn.GroupNorm):
    """Group normalisation over 32 groups (see ModelConfig.norm_groups), computed in float32 and returned in the input's
    type."""

    def __init__(self, channels: int) -> None:
        super().__init__(_NORM_GROUPS, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, channels, ...) -> the same shape and type."""
        if x.device.type == "cpu":  # there torch reads bf16 beside float32 weights, and sums in float32
            return super().forward(x)
        # On CUDA torch's answer is contiguous (pytorch issue 111824); this cast writes it as the convolutions read it.
        is_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if is_last else torch.preserve_format
        return super().forward(x.float()).to(x.dtype, memory_format=layout)


def _silu(x: Tensor) -> Tensor:
    """SiLU of a temporary tensor: in place where no gradient needs the tensor, which saves the largest allocations."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def _convolution(channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, 3, padding=1)


class ResBlock(nn.Module):
    """A residual block, scaled and shifted by the time embedding, that may halve or double the size."""

    def __init__(
        self,
        channels: int,
        embedding_width: int,
        out_channels: int,
        dropout: float,
        resample: Literal["up", "down"] | None = None,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.in_layers = nn.Sequential(GroupNorm(channels), nn.SiLU(), _convolution(channels, out_channels))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding_width, 2 * out_channels))
        self.out_layers = nn.Sequential(
            GroupNorm(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zeroed(_convolution(out_channels, out_channels)),
        )
        self.skip_connection = nn.Identity() if out_channels == channels else nn.Conv2d(channels, out_channels, 1)

    def _resized(self, x: Tensor) -> Tensor:
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return x

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (N, channels, H, W), embedding (N, embedding_width) -> (N, out_channels, H', W')."""
        norm, _, convolution = self.in_layers
        h = convolution(self._resized(_silu(norm(x))))
        scale, shift = self.emb_layers(embedding).to(h.dtype)[:, :, None, None].chunk(2, dim=1)
        norm, _, dropout, convolution = self.out_layers
        h = convolution(dropout(_silu(torch.addcmul(shift, norm(h), 1 + scale))))
        result: Tensor = self.skip_connection(self._resized(x)) + h
        return result


class AttentionBlock(nn.Module):
    """Positions attend to each other and, through extra keys and values in front, to the condition's tokens.

    With `reach`, attention weights decrease with distance; see ModelConfig.attention_reach.
    """

    def __init__(self, channels: int, head_channels: int, token_width: int, reach: float | None = None) -> None:
        super().__init__()
        if channels % head_channels:
            raise ConfigError(
                f"attention over {channels} channels cannot be split into heads of {head_channels}",
                "choose num_head_channels so that it divides model_channels times each multiplier that attends",
            )
        self.heads = channels // head_channels
        self.reach = reach
        self.norm = GroupNorm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.encoder_kv = nn.Conv1d(token_width, 2 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """x (N, C, H, W), tokens (N, L, token_width) -> (N, C, H, W)."""
        n, c, height, width = x.shape
        h = self.norm(x).flatten(2).transpose(1, 2)
        # Order of the channels, as in the published files: (head, which of q k v, channel).
        q, k, v = _pointwise(self.qkv, h).view(n, -1, self.heads, 3, c // self.heads).unbind(3)
        extra_k, extra_v = _pointwise(self.encoder_kv, tokens).view(n, -1, self.heads, 2, c // self.heads).unbind(3)
        k, v = torch.cat([extra_k, k], dim=1), torch.cat([extra_v, v], dim=1)
        bias = None
        if self.reach is not None:
            bias = _distance_bias(height, width, tokens.shape[1], self.reach).to(q)
        attended = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), bias)
        attended = _pointwise(self.proj_out, attended.transpose(1, 2).reshape(n, -1, c))
        return x + attended.transpose(1, 2).reshape(n, c, height, width)


@lru_cache(maxsize=16)
def _distance_bias(height: int, width: int, num_tokens: int, reach: float) -> Tensor:
    """The bias that is added to attention's logits: (height * width, num_tokens + height * width) float32 on the CPU.

    Entry (i, j) is -(d / reach)^2 / 2 for the distance d, in sides of the picture, between position i and the token
    or position j. Tokens lie in a square grid over the picture.
    """
    side = math.isqrt(num_tokens)

    def centres(rows: int, columns: int) -> Tensor:
        y = (torch.arange(rows, device="cpu") + 0.5) / rows
        x = (torch.arange(columns, device="cpu") + 0.5) / columns
        return torch.cartesian_prod(y, x)

    positions = centres(height, width)
    keys = torch.cat([centres(side, side), positions])
    return torch.cdist(positions, keys).square() / (-2 * reach**2)


def _pointwise(convolution: nn.Conv1d, x: Tensor) -> Tensor:
    """A convolution of width 1 as a matrix product: positions (N, T, C) need no transposing."""
    return F.linear(x, convolution.weight.squeeze(-1), convolution.bias)


class Block(nn.Sequential):
    """One entry of the U-Net: a convolution, or a residual block, optionally followed by attention and resampling."""

    checkpointed = False

    def forward(self, x: Tensor, embedding: Tensor, tokens: Tensor) -> Tensor:  # type: ignore[override]
        if self.checkpointed and torch.is_grad_enabled():
            result: Tensor = checkpoint(self._run, x, embedding, tokens, use_reentrant=False)
            return result
        return self._run(x, embedding, tokens)

    def _run(self, x: Tensor, embedding: Tensor, tokens: Tensor) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, embedding)
            elif isinstance(layer, AttentionBlock):
                x = layer(x, tokens)
            else:
                x = layer(x)
        return x


class Decoder(nn.Module):
    """GLIDE's U-Net without its text tower; with `super_resolution` it also takes a low-resolution picture.

    Every convolution that closes a residual branch, and the last one, begin at zero as published: a fresh decoder
    predicts zero noise.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.model_channels
        embedding_width = 4 * width
        in_channels = IMAGE_CHANNELS * (2 if config.super_resolution else 1)
        self.time_embed = nn.Sequential(
            nn.Linear(width, embedding_width), nn.SiLU(), nn.Linear(embedding_width, embedding_width)
        )
        self.transformer_proj = nn.Linear(config.encoder_width, embedding_width)
        first = width * config.channel_mult[0]
        self.input_blocks = nn.ModuleList([Block(_convolution(in_channels, first))])
        channels, skips = self._build_down(first, embedding_width)
        self.middle_block = Block(
            self._residual(channels, channels, embedding_width),
            self._attention(channels),
            self._residual(channels, channels, embedding_width),
        )
        self.output_blocks = nn.ModuleList()
        channels = self._build_up(channels, skips, embedding_width)
        self.out = nn.Sequential(GroupNorm(channels), nn.SiLU(), zeroed(_convolution(channels, OUTPUT_CHANNELS)))
        for module in self.modules():
            if isinstance(module, GroupNorm):
                module.num_groups = config.norm_groups
        if config.activation_checkpointing:
            for module in self.modules():
                if isinstance(module, Block):
                    module.checkpointed = True

    def _residual(
        self, channels: int, out_channels: int, embedding_width: int, resample: Literal["up", "down"] | None = None
    ) -> ResBlock:
        return ResBlock(channels, embedding_width, out_channels, self.config.dropout, resample)

    def _attention(self, channels: int) -> AttentionBlock:
        return AttentionBlock(
            channels, self.config.num_head_channels, self.config.encoder_width, self.config.attention_reach
        )

    def _build_down(self, channels: int, embedding_width: int) -> tuple[int, list[int]]:
        """Fill `input_blocks`. Returns the channels at the bottom, and those of every skip connection."""
        config = self.config
        side, skips = config.image_size, [channels]
        for level, multiplier in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks):
                block: list[nn.Module] = [self._residual(channels, multiplier * config.model_channels, embedding_width)]
                channels = multiplier * config.model_channels
                if side in config.attention_resolutions:
                    block.append(self._attention(channels))
                self.input_blocks.append(Block(*block))
                skips.append(channels)
            if level != len(config.channel_mult) - 1:
                self.input_blocks.append(Block(self._residual(channels, channels, embedding_width, "down")))
                skips.append(channels)
                side //= 2
        return channels, skips

    def _build_up(self, channels: int, skips: list[int], embedding_width: int) -> int:
        """Fill `output_blocks`, each of which takes a skip connection. Returns the channels at the top."""
        config = self.config
        side = config.image_size >> (len(config.channel_mult) - 1)
        for level, multiplier in reversed(list(enumerate(config.channel_mult))):
            for index in range(config.num_res_blocks + 1):
                out_channels = multiplier * config.model_channels
                block: list[nn.Module] = [self._residual(channels + skips.pop(), out_channels, embedding_width)]
                channels = out_channels
                if side in config.attention_resolutions:
                    block.append(self._attention(channels))
                if level and index == config.num_res_blocks:
                    block.append(self._residual(channels, channels, embedding_width, "up"))
                    side *= 2
                self.output_blocks.append(Block(*block))
        return channels

    def forward(self, x_t: Tensor, t: Tensor, latent: Latent, low_res: Tensor | None = None) -> Tensor:
        """Predict noise and variance.

        x_t (N, 3, S, S); t (N,) time in 0..1000, may be fractional; low_res (N, 3, s, s) in [-1, 1], required with
        `super_resolution` and not allowed without, enlarged bilinearly (align_corners false). Returns (N, 6, S, S) in
        the type of the weights; the last layer runs outside of autocast, as published for half precision. Raises
        ValueError for a missing or superfluous low_res.
        """
        if (low_res is not None) != self.config.super_resolution:
            raise ValueError("low_res is required with super_resolution, and not allowed without")
        if low_res is not None:
            enlarged = F.interpolate(low_res.to(x_t.dtype), x_t.shape[2:], mode="bilinear", align_corners=False)
            x_t = torch.cat([x_t, enlarged], dim=1)
        dtype = self.transformer_proj.weight.dtype
        embedding = self.time_embed(timestep_embedding(t, self.config.model_channels).to(dtype))
        embedding = embedding + self.transformer_proj(latent.summary).to(embedding.dtype)
        h, skips = x_t.to(dtype), []
        for block in self.input_blocks:
            h = block(h, embedding, latent.tokens)
            skips.append(h)
        h = self.middle_block(h, embedding, latent.tokens)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), embedding, latent.tokens)
        with torch.autocast(h.device.type, enabled=False):
            result: Tensor = self.out(h.to(dtype))
        return result
