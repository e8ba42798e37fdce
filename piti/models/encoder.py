"""The task encoder: a condition picture becomes tokens in the decoder's semantic space.

Parameter names and shapes are those of PITI's `encoder.*` (PITI-Synthesis/PITI, text2im_model.py and xf.py).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from piti.config import ENCODER_STRIDE, ModelConfig

_CLASS_TOKEN_STD = 0.02
_POSITION_STD = 0.01

M = TypeVar("M", bound=nn.Module)


def laid_out(module: M) -> M:
    """`module` with its weights, and so its activations, in channels-last order where that is faster: on CUDA, AVX-512
    and AMX."""
    faster = torch.cuda.is_available() or torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return module.to(memory_format=torch.channels_last) if faster else module  # type: ignore[call-overload]


class Latent(NamedTuple):
    """An encoded condition. It does not depend on the timestep: encode once, decode many times."""

    tokens: Tensor  # (N, L, width): one token for each 16x16 pixels of the condition
    summary: Tensor  # (N, width): the class token's output, which joins the time embedding


class LayerNorm(nn.LayerNorm):
    """Layer normalisation computed in float32 and returned in the input's type."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


class SelfAttention(nn.Module):
    """Multi-head attention of all tokens to all tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_qkv = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        # Order of the channels, as in the published files: (head, which of q k v, channel).
        q, k, v = self.c_qkv(x).view(n, length, self.heads, 3, width // self.heads).transpose(1, 2).unbind(3)
        attended = F.scaled_dot_product_attention(q, k, v)
        result: Tensor = self.c_proj(attended.transpose(1, 2).reshape(n, length, width))
        return result


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.c_proj(F.gelu(self.c_fc(x)))
        return result


class TransformerLayer(nn.Module):
    """Attention, then a feed-forward network, each normalised before and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = SelfAttention(width, heads)
        self.ln_1 = LayerNorm(width)
        self.mlp = FeedForward(width)
        self.ln_2 = LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        h: Tensor = x + self.mlp(self.ln_2(x))
        return h


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, *, checkpointed: bool) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(TransformerLayer(width, heads) for _ in range(layers))
        self.checkpointed = checkpointed

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.resblocks:
            recompute = self.checkpointed and torch.is_grad_enabled()
            x = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
        return x


class ConvolutionStem(nn.Module):
    """Six convolutions, four of stride 2: condition (N, C, S, S) -> features (N, width, S/16, S/16).

    Widths grow from width/16 to width; all but the last convolution are followed by an affine instance norm and a
    LeakyReLU of slope 0.2. `norm` "layer" normalises over channels and positions instead.
    """

    def __init__(self, in_channels: int, width: int, norm: Literal["instance", "layer"]) -> None:
        super().__init__()
        widths = [width // 16, width // 8, width // 4, width // 2, width]
        self.conv1 = nn.Conv2d(in_channels, widths[0], 7, padding=3)
        self.conv2, self.conv3, self.conv4, self.conv5 = (
            nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in pairwise(widths)
        )
        self.conv6 = nn.Conv2d(width, width, 3, padding=1)
        self.norm1, self.norm2, self.norm3, self.norm4, self.norm5 = (
            nn.InstanceNorm2d(channels, affine=True) if norm == "instance" else nn.GroupNorm(1, channels)
            for channels in widths
        )

    def forward(self, x: Tensor) -> Tensor:
        for convolution, norm in (
            (self.conv1, self.norm1),
            (self.conv2, self.norm2),
            (self.conv3, self.norm3),
            (self.conv4, self.norm4),
            (self.conv5, self.norm5),
        ):
            x = F.leaky_relu(norm(convolution(x)), 0.2)
        result: Tensor = self.conv6(x)
        return result


class TaskEncoder(nn.Module):
    """Condition picture -> Latent.

    The published code leaves a fresh class token and fresh positions uninitialised; here they are normal with
    standard deviation 0.02 and 0.01 (CLIP's). The first position belongs to the class token, which is placed last.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.encoder_width
        num_tokens = (config.condition_size // ENCODER_STRIDE) ** 2
        self.transformer = Transformer(
            width, config.encoder_layers, config.encoder_heads, checkpointed=config.activation_checkpointing
        )
        self.cnn = ConvolutionStem(config.condition_channels, width, config.encoder_norm)
        self.final_ln = LayerNorm(width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.positional_embedding = nn.Parameter(torch.empty(1, num_tokens + 1, width))
        nn.init.normal_(self.cls_token, std=_CLASS_TOKEN_STD)
        nn.init.normal_(self.positional_embedding, std=_POSITION_STD)

    def forward(self, condition: Tensor) -> Latent:
        """condition (N, C, S, S) in [-1, 1] with S = config.condition_size. Raises ValueError for another shape."""
        expected = (self.config.condition_channels, self.config.condition_size, self.config.condition_size)
        if tuple(condition.shape[1:]) != expected:
            raise ValueError(f"condition has shape {tuple(condition.shape)}, this encoder takes (N, {expected})")
        tokens = self.cnn(condition.to(self.cls_token.dtype)).flatten(2).transpose(1, 2)
        tokens = tokens + self.positional_embedding[:, 1:]
        class_token = (self.cls_token + self.positional_embedding[:, :1]).expand(len(tokens), -1, -1)
        tokens = self.final_ln(self.transformer(torch.cat([tokens, class_token.to(tokens.dtype)], dim=1)))
        return Latent(tokens=tokens[:, :-1], summary=tokens[:, -1])
