"""3x3 convolutions by minimal filtering are 3x3 convolutions: against the direct sum in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from piti.models import convolution
from piti.models.convolution import Conv3x3, MinimalFiltering, suits_minimal_filtering
from tests.exact_values import relative_error

Shape = tuple[int, int, int, int]


def drawn(shape: Shape, seed: int) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.contiguous(memory_format=torch.channels_last)


# Maps that fit one chunk with others, that need several with a shorter last one, and that are wide or low.
@pytest.mark.parametrize("chunk_bytes", [1, 40_000, 1 << 30])
@pytest.mark.parametrize("shape", [(5, 7, 8, 12), (1, 16, 4, 64), (3, 4, 36, 4), (2, 20, 24, 24)])
def test_output_and_gradients(shape: Shape, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 2e-6 of the largest value, each: float32 holds 6e-8, and tens of terms are added."""
    monkeypatch.setattr(convolution, "_CHUNK_BYTES", chunk_bytes)
    x, weight, bias = drawn(shape, 0), drawn((9, shape[1], 3, 3), 1), torch.linspace(-1, 1, 9)
    grad = drawn((shape[0], 9, *shape[2:]), 2)
    found = [value.requires_grad_() for value in (x, weight, bias)]
    y = MinimalFiltering.apply(*found)
    assert y.is_contiguous(memory_format=torch.channels_last)
    ours = torch.autograd.grad(y, found, grad)
    exact = [value.detach().double().requires_grad_() for value in found]
    reference = F.conv2d(*exact, padding=1)
    assert relative_error(y, reference) < 2e-6
    for mine, theirs in zip(ours, torch.autograd.grad(reference, exact, grad.double()), strict=True):
        assert mine.shape == theirs.shape
        assert relative_error(mine, theirs) < 2e-6


def test_rounding_is_about_a_direct_sums() -> None:
    """At a published size, 384 to 192 channels, 64x64: less than 1.5 times the error of torch's own convolution."""
    x, weight = drawn((1, 384, 64, 64), 0), drawn((192, 384, 3, 3), 1) / 60
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    filtered, direct = MinimalFiltering.apply(x, weight, torch.zeros(192)), F.conv2d(x, weight, padding=1)
    assert relative_error(filtered, exact) < max(1.5 * relative_error(direct, exact), 4e-6)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_only_what_is_wanted_gets_a_gradient(frozen: int) -> None:
    inputs = [drawn((1, 4, 8, 8), 0), drawn((4, 4, 3, 3), 1), torch.ones(4)]
    for place, value in enumerate(inputs):
        value.requires_grad_(place != frozen)
    MinimalFiltering.apply(*inputs).sum().backward()
    assert [value.grad is None for value in inputs] == [place == frozen for place in range(3)]


def test_what_it_is_not_for_is_done_as_ever() -> None:
    layer = Conv3x3(96, 96).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = drawn((1, 96, 24, 24), 0)
    assert suits_minimal_filtering(x, layer.weight)
    assert layer(x).grad_fn.name() == "MinimalFilteringBackward"
    others = [x[:, :, :22], x[:, :, :20], x.contiguous(), x.double()]  # no fours, too few, planes, doubles
    assert not any(suits_minimal_filtering(other, layer.weight) for other in others)
    assert not suits_minimal_filtering(drawn((1, 64, 32, 32), 0), drawn((96, 64, 3, 3), 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not suits_minimal_filtering(x, layer.weight)
    for other in others[:3]:
        assert torch.equal(layer(other), F.conv2d(other, layer.weight, layer.bias, padding=1))
