"""3x3 convolutions; on CPUs in float32 by minimal filtering F(2x2, 3x3), with 16 products for 4 outputs instead of 36.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308), sections 4 and 5: with 4x4 tiles
d of the input, two pixels apart, and filters g, an output tile is A^T [sum over channels (G g G^T) * (B^T d B)] A. A and
B hold only 0, 1 and -1, so that rounding is no worse than a direct sum's. The backward pass is the same computation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_CHUNK_BYTES = 8 << 20  # of transformed input at a time, so that it is still in the cache when it is multiplied
_LEAST_PIXELS = 256  # of a batch: with fewer, transforming the filters costs more than is saved
LEAST_CHANNELS = 160  # in and out: with fewer, transforming input and output costs more than is saved
_G = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]])
_FILTER_TRANSFORM = torch.kron(_G, _G)  # (16, 9)


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution with stride 1 that keeps height and width."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, in_channels, H, W) -> (N, out_channels, H, W)."""
        if suits_minimal_filtering(x, self.weight):
            result: Tensor = MinimalFiltering.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
            return result
        return super().forward(x)


def suits_minimal_filtering(x: Tensor, weight: Tensor) -> bool:
    """Whether minimal filtering is possible, and quicker: float32 on a CPU, channels last, even sides, enough to do."""
    n, _, height, width = x.shape
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and height % 2 == width % 2 == 0
        and n * height * width >= _LEAST_PIXELS
        and min(weight.shape[:2]) >= LEAST_CHANNELS
        and x.is_contiguous(memory_format=torch.channels_last)
    )


class MinimalFiltering(torch.autograd.Function):
    """x (N, C, H, W) channels last with even sides, weight (O, C, 3, 3), bias (O,) -> (N, O, H, W) channels last."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolved(x, _transformed(weight, _FILTER_TRANSFORM).transpose(1, 2), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:  # the convolution with the filters turned by half a turn
            grad_x = _convolved(grad, _transformed(weight, _FILTER_TRANSFORM.flip(1)), None)
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(x, grad)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias


def _convolved(x: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    """x (N, K, H, W), transformed filters (16, K, M), bias (M,) -> (N, M, H, W)."""
    n, _, height, width = x.shape
    y = x.new_empty(n, height, width, filters.shape[2])
    memory = None
    for tiles, pictures, rows in _chunks(x):
        if memory is None:  # the first chunk is the largest
            memory = x.new_empty(tiles.shape[0] * tiles.shape[1] * filters.shape[2])
        products = memory[: 16 * tiles.shape[1] * filters.shape[2]].view(16, tiles.shape[1], -1)
        torch.bmm(tiles, filters, out=products)
        if bias is not None:
            products[5] += bias  # the product that enters all four outputs, once each
        _put_outputs(products, y[pictures, rows])
    return y.permute(0, 3, 1, 2)


def _weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """x (N, C, H, W) and the gradient of the output (N, O, H, W) -> that of the weight (O, C, 3, 3)."""
    out_channels, in_channels = grad.shape[1], x.shape[1]
    total = x.new_zeros(16, out_channels, in_channels)
    grad = grad.permute(0, 2, 3, 1)
    for tiles, pictures, rows in _chunks(x):
        total.baddbmm_(_outputs_adjoint(grad[pictures, rows]).transpose(1, 2), tiles)
    taps = torch.matmul(_FILTER_TRANSFORM.t(), total.transpose(0, 1))
    return taps.view(out_channels, 3, 3, in_channels).permute(0, 3, 1, 2)


def _transformed(weight: Tensor, transform: Tensor) -> Tensor:
    """G g G^T of filters (O, C, 3, 3): (16, O, C)."""
    taps = weight.permute(0, 2, 3, 1).flatten(1, 2)  # (O, 9, C), a view where they lie channels last
    return torch.matmul(transform, taps).transpose(0, 1)


def _chunks(x: Tensor) -> Iterator[tuple[Tensor, slice, slice]]:
    """B^T d B of x (N, C, H, W), some tiles at a time: (16, T, C), and the pictures and rows they are made of.

    The first has most tiles. The same memory is used for all.
    """
    n, channels, height, width = x.shape
    down, across = height // 2, width // 2
    wanted = max(1, _CHUNK_BYTES // (16 * 4 * channels))
    at_once, rows_at_once = min(n, max(1, wanted // (down * across))), min(down, max(1, wanted // across))
    padded = x.new_zeros(at_once, 2 * rows_at_once + 2, width + 2, channels)
    halves = x.new_empty(4, at_once, rows_at_once, width + 2, channels)
    tiles = x.new_empty(16 * at_once * rows_at_once * across * channels)
    x = x.permute(0, 2, 3, 1)
    for first in range(0, n, at_once):
        pictures = slice(first, min(n, first + at_once))
        num_pictures = pictures.stop - first
        for top in range(0, down, rows_at_once):
            rows = slice(2 * top, 2 * min(down, top + rows_at_once))
            above, below = max(rows.start - 1, 0), min(rows.stop + 1, height)
            some = padded[:num_pictures, : rows.stop - rows.start + 2]
            some[:, 0], some[:, -1] = 0, 0
            some[:, above - rows.start + 1 : below - rows.start + 1, 1:-1] = x[pictures, above:below]
            num_rows = (rows.stop - rows.start) // 2
            size = 16 * num_pictures * num_rows * across * channels
            found = tiles[:size].view(4, 4, num_pictures, num_rows, across, channels)
            _put_tiles(some, halves[:, :num_pictures, :num_rows], found)
            yield found.view(16, -1, channels), pictures, rows


def _put_tiles(padded: Tensor, halves: Tensor, tiles: Tensor) -> None:
    """B^T d B of all tiles of (n, 2h + 2, 2w + 2, C) into (4, 4, n, h, w, C), by way of B^T d (4, n, h, 2w + 2, C)."""
    _filtered([padded[:, i : i + padded.shape[1] - 2 : 2] for i in range(4)], halves)
    _filtered([halves[:, :, :, j : j + padded.shape[2] - 2 : 2] for j in range(4)], tiles.transpose(0, 1))


def _filtered(d: list[Tensor], out: Tensor) -> None:
    """B^T d along one axis."""
    torch.sub(d[0], d[2], out=out[0])
    torch.add(d[1], d[2], out=out[1])
    torch.sub(d[2], d[1], out=out[2])
    torch.sub(d[1], d[3], out=out[3])


def _put_outputs(products: Tensor, y: Tensor) -> None:
    """A^T m A of products (16, T, M), which are used up, into y (n, 2h, 2w, M)."""
    n, height, width, channels = y.shape
    m = products.view(4, 4, n, height // 2, width // 2, channels)
    m[0].add_(m[1]).add_(m[2])
    m[1].sub_(m[2]).sub_(m[3])
    for i in range(2):
        left, right = y[:, i::2, 0::2], y[:, i::2, 1::2]
        torch.add(m[i, 0], m[i, 1], out=left).add_(m[i, 2])
        torch.sub(m[i, 1], m[i, 2], out=right).sub_(m[i, 3])


def _outputs_adjoint(grad: Tensor) -> Tensor:
    """A g A^T of a gradient (n, 2h, 2w, M): (16, T, M)."""
    n, height, width, channels = grad.shape
    adjoint = grad.new_empty(4, 4, n, height // 2, width // 2, channels)
    upper, lower = grad[:, 0::2], grad[:, 1::2]
    for row, half in zip(adjoint, (upper, upper + lower, upper - lower, -lower), strict=True):
        left, right = half[:, :, 0::2], half[:, :, 1::2]
        row[0].copy_(left)
        torch.add(left, right, out=row[1])
        torch.sub(left, right, out=row[2])
        torch.neg(right, out=row[3])
    return adjoint.view(16, -1, channels)
