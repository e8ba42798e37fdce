"""Group normalisation, in float32 whatever comes in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_NORM_GROUPS = 32
_LARGE_PIXELS = 1 << 13  # of a map: from here on torch's sums, channels last, lose a digit
_CHUNK_BYTES = 2 << 20  # added up at a time, in the cache


class GroupNorm(nn.GroupNorm):
    """Group normalisation over 32 groups, computed in float32 whatever comes in, returned in the input's type."""

    def __init__(self, channels: int) -> None:
        super().__init__(_NORM_GROUPS, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, channels, ...) -> the same shape and type."""
        if x.device.type != "cpu":
            return super().forward(x.float()).to(x.dtype)
        if _wants_finer_sums(x, self.weight):
            result: Tensor = FinelySummed.apply(x, self.weight, self.bias, self.num_groups, self.eps)  # type: ignore[no-untyped-call]
            return result
        return super().forward(x)  # reads bf16 beside float32 weights, and needs no float32 copies to do so


def _wants_finer_sums(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype == weight.dtype == torch.float32
        and x.dim() == 4
        and x.shape[2] * x.shape[3] >= _LARGE_PIXELS
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.compiler.is_compiling()
    )


class FinelySummed(torch.autograd.Function):
    """Group normalisation of x (N, C, H, W), float32, channels last, on a CPU.

    Torch adds up a whole map, one pixel after the other, in float32: over 256x256 of them on one thread that cost the
    upsampler's outputs 1.2e-5 of the largest. Here some rows are added in float32, and their sums in float64.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        n, channels, height, width = x.shape
        pixels = x.permute(0, 2, 3, 1)
        sums = x.new_zeros(2, n, channels, dtype=torch.float64)
        rows = max(1, _CHUNK_BYTES // (4 * n * width * channels))
        for top in range(0, height, rows):
            some = pixels[:, top : top + rows]
            sums[0] += some.sum((1, 2))
            sums[1] += some.square().sum((1, 2))
        mean, square = sums.view(2, n, groups, -1).sum(-1) / (height * width * channels // groups)
        deviation = (square - mean.square()).clamp_min_(0)
        inverse = (deviation + eps).rsqrt()
        scale = inverse.repeat_interleave(channels // groups, 1) * weight
        shift = bias - mean.repeat_interleave(channels // groups, 1) * scale
        ctx.save_for_backward(x, weight, mean.float(), inverse.float())
        ctx.groups = groups
        return torch.addcmul(shift.float()[:, :, None, None], x, scale.float()[:, :, None, None])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight, mean, inverse = ctx.saved_tensors
        n, channels, height, width = x.shape
        grad = grad.contiguous(memory_format=torch.channels_last)
        found = torch.ops.aten.native_group_norm_backward(
            grad, x, mean, inverse, weight, n, channels, height * width, ctx.groups, ctx.needs_input_grad[:3]
        )
        return (*found, None, None)
