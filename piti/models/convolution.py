"""3x3 convolutions; on CPUs in float32 by minimal filtering F(4x4, 3x3), with 36 products for 16 outputs, not 144.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308): with 6x6 tiles d of the input,
four pixels apart, and filters g, an output tile is A^T [sum over channels (G g G^T) * (B^T d B)] A. The matrices follow
from the points 0, +-3/4, +-3/2 and infinity: their rounding is a quarter of that of the usual 0, +-1, +-2, and about
that of a direct sum (cf. Barabasz et al., arXiv 1803.10986). The backward pass is the same computation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_CHUNK_BYTES = 8 << 20  # of transformed input at a time, so that it is still in the cache when it is multiplied
_LEAST_PIXELS = 512  # of a batch: with fewer, transforming the filters costs more than is saved
LEAST_CHANNELS = 96  # in and out: with fewer, transforming input and output costs more than is saved
_TILE, _OUT = 6, 4  # pixels of a side, of input and output
_NEAR, _FAR = 0.75, 1.5  # the points
_NEAR2, _FAR2 = _NEAR**2, _FAR**2


def _filter_transform() -> Tensor:
    """G x G, float32 (36, 9): a filter's value at each point, over the other points' distances from it."""
    points = [(0.0, _NEAR2 * _FAR2)]
    points += [(sign * _NEAR, 2 * _NEAR2 * (_NEAR2 - _FAR2)) for sign in (1, -1)]
    points += [(sign * _FAR, 2 * _FAR2 * (_FAR2 - _NEAR2)) for sign in (1, -1)]
    g = [[point**power / scale for power in range(3)] for point, scale in points]
    matrix = torch.tensor([*g, [0.0, 0.0, 1.0]], dtype=torch.float64, device="cpu")
    return torch.kron(matrix, matrix).float()


_FILTER_TRANSFORM = _filter_transform()


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
    """Whether minimal filtering is possible, and quicker: float32 on a CPU, channels last, sides in fours, enough to do."""
    n, _, height, width = x.shape
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and height % _OUT == width % _OUT == 0
        and n * height * width >= _LEAST_PIXELS
        and min(weight.shape[:2]) >= LEAST_CHANNELS
        and x.is_contiguous(memory_format=torch.channels_last)
    )


class MinimalFiltering(torch.autograd.Function):
    """x (N, C, H, W) channels last with sides in fours, weight (O, C, 3, 3), bias (O,) -> (N, O, H, W) channels last."""

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
        with torch.autocast("cpu", enabled=False):
            if ctx.needs_input_grad[0]:  # the convolution with the filters turned by half a turn
                grad_x = _convolved(grad, _transformed(weight, _FILTER_TRANSFORM.flip(1)), None)
            if ctx.needs_input_grad[1]:
                grad_weight = _weight_gradient(x, grad)
            if ctx.needs_input_grad[2]:
                grad_bias = grad.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias


def _convolved(x: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    """x (N, K, H, W), transformed filters (36, K, M), bias (M,) -> (N, M, H, W)."""
    n, _, height, width = x.shape
    y = x.new_empty(n, height, width, filters.shape[2])
    memory = None
    for tiles, pictures, rows in _chunks(x):
        size = 36 * tiles.shape[1] * filters.shape[2]
        if memory is None:  # the first chunk is the largest
            memory = x.new_empty(2, size)
        products = memory[0, :size].view(36, tiles.shape[1], -1)
        torch.bmm(tiles, filters, out=products)
        some = y[pictures, rows]
        _put_outputs(products, memory[1], some)
        if bias is not None:
            some += bias
    return y.permute(0, 3, 1, 2)


def _weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """x (N, C, H, W) and the gradient of the output (N, O, H, W) -> that of the weight (O, C, 3, 3)."""
    out_channels, in_channels = grad.shape[1], x.shape[1]
    total = x.new_zeros(36, out_channels, in_channels)
    grad = grad.permute(0, 2, 3, 1)
    for tiles, pictures, rows in _chunks(x):
        total.baddbmm_(_outputs_adjoint(grad[pictures, rows]).transpose(1, 2), tiles)
    taps = torch.matmul(_FILTER_TRANSFORM.t(), total.transpose(0, 1))
    return taps.view(out_channels, 3, 3, in_channels).permute(0, 3, 1, 2)


def _transformed(weight: Tensor, transform: Tensor) -> Tensor:
    """G g G^T of filters (O, C, 3, 3): (36, O, C)."""
    taps = weight.permute(0, 2, 3, 1).flatten(1, 2)  # (O, 9, C), a view where they lie channels last
    return torch.matmul(transform, taps).transpose(0, 1)


def _chunks(x: Tensor) -> Iterator[tuple[Tensor, slice, slice]]:
    """B^T d B of x (N, C, H, W), some tiles at a time: (36, T, C), and the pictures and rows they are made of.

    The first has most tiles. The same memory is used for all.
    """
    n, channels, height, width = x.shape
    down, across = height // _OUT, width // _OUT
    wanted = max(1, _CHUNK_BYTES // (36 * 4 * channels))
    at_once, rows_at_once = min(n, max(1, wanted // (down * across))), min(down, max(1, wanted // across))
    padded = x.new_zeros(at_once, _OUT * rows_at_once + 2, width + 2, channels)
    halves = x.new_empty(_TILE, at_once, rows_at_once, width + 2, channels)
    tiles = x.new_empty(36 * at_once * rows_at_once * across * channels)
    x = x.permute(0, 2, 3, 1)
    for first in range(0, n, at_once):
        pictures = slice(first, min(n, first + at_once))
        num_pictures = pictures.stop - first
        for top in range(0, down, rows_at_once):
            rows = slice(_OUT * top, _OUT * min(down, top + rows_at_once))
            above, below = max(rows.start - 1, 0), min(rows.stop + 1, height)
            some = padded[:num_pictures, : rows.stop - rows.start + 2]
            some[:, 0], some[:, -1] = 0, 0
            some[:, above - rows.start + 1 : below - rows.start + 1, 1:-1] = x[pictures, above:below]
            num_rows = (rows.stop - rows.start) // _OUT
            size = 36 * num_pictures * num_rows * across * channels
            found = tiles[:size].view(_TILE, _TILE, num_pictures, num_rows, across, channels)
            _put_tiles(some, halves[:, :num_pictures, :num_rows], found)
            yield found.view(36, -1, channels), pictures, rows


def _put_tiles(padded: Tensor, halves: Tensor, tiles: Tensor) -> None:
    """B^T d B of all tiles of (n, 4h + 2, 4w + 2, C) into (6, 6, n, h, w, C), by way of B^T d (6, n, h, 4w + 2, C)."""
    _input_at_points([padded[:, i : i + padded.shape[1] - 5 : _OUT] for i in range(_TILE)], halves)
    columns = [halves[:, :, :, j : j + padded.shape[2] - 5 : _OUT] for j in range(_TILE)]
    _input_at_points(columns, tiles.transpose(0, 1))


def _input_at_points(d: Sequence[Tensor], out: Tensor) -> None:
    """B^T d along one axis, 6 to 6. The first and last of `out` serve as memory for even and odd parts before."""
    for place, point, others2 in ((1, _NEAR, _FAR2), (3, _FAR, _NEAR2)):
        even = torch.sub(d[4], d[2], alpha=others2, out=out[0])
        odd = torch.sub(d[3], d[1], alpha=others2, out=out[5])
        torch.add(even, odd, alpha=point, out=out[place])
        torch.sub(even, odd, alpha=point, out=out[place + 1])
    torch.sub(d[4], d[2], alpha=_NEAR2 + _FAR2, out=out[0]).add_(d[0], alpha=_NEAR2 * _FAR2)
    torch.sub(d[5], d[3], alpha=_NEAR2 + _FAR2, out=out[5]).add_(d[1], alpha=_NEAR2 * _FAR2)


def _put_outputs(products: Tensor, memory: Tensor, y: Tensor) -> None:
    """A^T m A of products (36, T, M), which are used up, into y (n, 4h, 4w, M), by way of A^T m in `memory`."""
    n, height, width, channels = y.shape
    shape = n, height // _OUT, width // _OUT, channels
    halves = memory[: products.numel() // _TILE * _OUT].view(_OUT, _TILE, *shape)
    _output_of_points(products.view(_TILE, _TILE, *shape), halves)
    for i, half in enumerate(halves):
        _output_of_points(half, [y[:, i::_OUT, j::_OUT] for j in range(_OUT)])


def _output_of_points(m: Tensor, out: Sequence[Tensor] | Tensor) -> None:
    """A^T m along one axis, 6 to 4. Uses `m` up."""
    ratio = _FAR / _NEAR
    near_sum, near_difference = torch.add(m[1], m[2], out=out[0]), torch.sub(m[1], m[2], out=out[1])
    far_sum, far_difference = torch.add(m[3], m[4], out=m[1]), torch.sub(m[3], m[4], out=m[2])
    torch.add(near_sum, far_sum, alpha=ratio**2, out=out[2]).mul_(_NEAR2)
    torch.add(near_difference, far_difference, alpha=ratio**3, out=out[3]).mul_(_NEAR**3).add_(m[5])
    near_sum.add_(far_sum).add_(m[0])
    near_difference.add_(far_difference, alpha=ratio).mul_(_NEAR)


def _outputs_adjoint(grad: Tensor) -> Tensor:
    """A g A^T of a gradient (n, 4h, 4w, M): (36, T, M)."""
    n, height, width, channels = grad.shape
    halves = grad.new_empty(_TILE, n, height // _OUT, width, channels)
    adjoint = grad.new_empty(_TILE, _TILE, n, height // _OUT, width // _OUT, channels)
    _gradient_at_points([grad[:, i::_OUT] for i in range(_OUT)], halves)
    _gradient_at_points([halves[:, :, :, j::_OUT] for j in range(_OUT)], adjoint.transpose(0, 1))
    return adjoint.view(36, -1, channels)


def _gradient_at_points(g: Sequence[Tensor], out: Tensor) -> None:
    """A g along one axis, 4 to 6. The first and last of `out` serve as memory for even and odd parts before."""
    for place, point in ((1, _NEAR), (3, _FAR)):
        even = torch.add(g[0], g[2], alpha=point**2, out=out[0])
        odd = torch.add(g[1], g[3], alpha=point**2, out=out[5])
        torch.add(even, odd, alpha=point, out=out[place])
        torch.sub(even, odd, alpha=point, out=out[place + 1])
    out[0].copy_(g[0])
    out[5].copy_(g[3])
