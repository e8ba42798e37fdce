"""Group normalisation of large maps, channels last: as in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from piti.models.group_norm import FinelySummed, GroupNorm
from tests.exact_values import relative_error


@pytest.mark.parametrize("shape", [(1, 64, 128, 128), (3, 32, 96, 100)])
def test_output_and_gradients(shape: tuple[int, ...]) -> None:
    """The output within float32's own rounding, which torch's misses by a digit; gradients as torch's, 2e-5."""
    generator = torch.Generator().manual_seed(0)
    x = (1 + 2 * torch.randn(shape, generator=generator)).contiguous(memory_format=torch.channels_last)
    grad = torch.randn(shape, generator=generator).contiguous(memory_format=torch.channels_last)
    norm = GroupNorm(shape[1])
    torch.nn.init.normal_(norm.weight, 1.0, 0.1, generator=generator)
    torch.nn.init.normal_(norm.bias, generator=generator)
    found = [x.requires_grad_(), norm.weight, norm.bias]
    y = norm(x)
    assert y.grad_fn.name() == "FinelySummedBackward"
    assert y.is_contiguous(memory_format=torch.channels_last)
    exact = [value.detach().double().requires_grad_() for value in found]
    reference = F.group_norm(exact[0], 32, exact[1], exact[2], norm.eps)
    assert relative_error(y, reference) < 3e-7
    theirs = torch.autograd.grad(reference, exact, grad.double())
    for mine, true in zip(torch.autograd.grad(y, found, grad), theirs, strict=True):
        assert relative_error(mine, true) < 2e-5


def test_a_constant_map_has_no_deviation() -> None:
    """Where rounding could make the variance negative."""
    x = torch.full((1, 32, 128, 64), 1000.1).contiguous(memory_format=torch.channels_last)
    y = FinelySummed.apply(x, torch.ones(32), torch.zeros(32), 32, 1e-5)
    assert y.abs().max() < 1  # eps bounds it: 1000.1 is no float32, and its rounding is 1e-5
    assert y.isfinite().all()


def test_others_are_left_to_torch() -> None:
    norm = GroupNorm(32)
    large = torch.randn(1, 32, 128, 64)
    for x in (large, large[..., :32].contiguous(memory_format=torch.channels_last), torch.randn(2, 32, 9)):
        assert torch.equal(norm(x), F.group_norm(x, 32, norm.weight, norm.bias, norm.eps))
    half = norm(large.bfloat16().contiguous(memory_format=torch.channels_last))
    assert half.dtype == torch.bfloat16
