"""Identities of classifier-free guidance, plain (equation 7) and normalised (equation 8)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from piti.diffusion import guided

SCALES = [0.0, 0.5, 1.0, 1.3, 2.5, 8.0]


class Outputs:
    """A network whose answers are fixed; counts how often it is asked for which."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.conditional = torch.randn(3, 6, 16, 16, generator=generator) * torch.tensor([0.5, 1, 2]).view(3, 1, 1, 1)
        self.conditional += torch.tensor([0.3, 0.0, -0.4]).view(3, 1, 1, 1)
        self.null = torch.randn(3, 6, 16, 16, generator=generator)
        self.calls: list[bool] = []

    def __call__(self, x_t: Tensor, t: Tensor, *, null: bool = False) -> Tensor:
        self.calls.append(null)
        return self.null if null else self.conditional


@pytest.fixture
def outputs() -> Outputs:
    return Outputs()


X_T, T = torch.zeros(3, 3, 16, 16), torch.zeros(3)


@pytest.mark.parametrize("scale", SCALES)
def test_normalised_noise_keeps_each_pictures_mean_and_deviation(scale: float, outputs: Outputs) -> None:
    noise = guided(outputs, scale)(X_T, T)[:, :3].flatten(1)
    wanted = outputs.conditional[:, :3].flatten(1)
    assert torch.allclose(noise.mean(1), wanted.mean(1), rtol=0, atol=1e-5)
    assert torch.allclose(noise.std(1), wanted.std(1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("scale", SCALES)
def test_normalised_is_plain_guidance_moved_and_scaled(scale: float, outputs: Outputs) -> None:
    """The direction of the centred noise is the plain guided one's: correlation 1, picture by picture."""
    plain = guided(outputs, scale, normalized=False)(X_T, T)[:, :3].flatten(1)
    normal = guided(outputs, scale)(X_T, T)[:, :3].flatten(1)
    for a, b in zip(plain, normal, strict=True):
        assert float(torch.corrcoef(torch.stack([a, b]))[0, 1]) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("normalized", [False, True])
def test_scale_1_is_the_conditional_model_and_costs_no_second_pass(normalized: bool, outputs: Outputs) -> None:
    assert torch.equal(guided(outputs, 1.0, normalized)(X_T, T), outputs.conditional)
    assert outputs.calls == [False]


def test_plain_guidance_is_equation_7(outputs: Outputs) -> None:
    """With w = s - 1: cond + w (cond - null); at s = 0 the unconditional noise."""
    cond, null = outputs.conditional[:, :3], outputs.null[:, :3]
    for scale in SCALES:
        noise = guided(outputs, scale, normalized=False)(X_T, T)[:, :3]
        assert torch.allclose(noise, cond + (scale - 1) * (cond - null), atol=1e-5)
    assert torch.allclose(guided(outputs, 0.0, normalized=False)(X_T, T)[:, :3], null, atol=1e-6)


def test_the_variance_stays_the_conditional_one(outputs: Outputs) -> None:
    for normalized in (False, True):
        assert torch.equal(guided(outputs, 3.0, normalized)(X_T, T)[:, 3:], outputs.conditional[:, 3:])


def test_a_constant_prediction_does_not_divide_by_zero(outputs: Outputs) -> None:
    outputs.conditional = torch.full((3, 6, 16, 16), 0.5)
    outputs.null = torch.full((3, 6, 16, 16), -0.5)
    assert torch.allclose(guided(outputs, 2.0)(X_T, T)[:, :3], torch.tensor(0.5))


def test_one_pass_over_both_conditions_is_taken_where_there_is_one(outputs: Outputs) -> None:
    def both(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return outputs.conditional, torch.zeros(3, 6, 16, 16)

    noise = guided(outputs, 2.0, normalized=False, both_fn=both)(X_T, T)
    assert torch.allclose(noise[:, :3], 2 * outputs.conditional[:, :3])
    assert outputs.calls == []
