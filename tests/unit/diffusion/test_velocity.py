"""Prediction of v: its definition by hand, its loss in terms of x_0's, and the same pictures from the same knowledge."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from piti.diffusion import GaussianDiffusion

X0 = torch.linspace(-0.9, 0.8, 2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
NOISE = torch.randn(X0.shape, generator=torch.Generator().manual_seed(0))


def with_place(values: Tensor) -> Tensor:
    return torch.cat([values, torch.zeros_like(values)], dim=1)


def test_an_exact_v_gives_the_picture_and_the_noise_back() -> None:
    diffusion = GaussianDiffusion(prediction="v")
    t = torch.tensor([20, 980])
    share = torch.tensor([diffusion.coefficients.alphas_cumprod[20], diffusion.coefficients.alphas_cumprod[980]])
    share = share.view(2, 1, 1, 1)
    v = (share.sqrt() * NOISE - (1 - share).sqrt() * X0).float()
    read = diffusion.predict(with_place(v), diffusion.q_sample(X0, t, NOISE), t, clip=False)
    torch.testing.assert_close(read.x0, X0, rtol=0, atol=1e-5)
    torch.testing.assert_close(read.noise, NOISE, rtol=0, atol=1e-5)


def test_the_loss_is_that_of_the_picture_times_one_plus_its_signal_to_noise_ratio() -> None:
    """Salimans and Ho, 2022, section 4: |v - v^|^2 = (1 + SNR) |x - x^|^2."""
    diffusion = GaussianDiffusion(prediction="v")
    t = torch.tensor([300, 900])
    v_hat = torch.randn(X0.shape, generator=torch.Generator().manual_seed(1))
    losses = diffusion.training_losses(lambda _x, _t: with_place(v_hat), X0, t, NOISE)
    share = torch.tensor([float(diffusion.coefficients.alphas_cumprod[int(step)]) for step in t])
    error = (losses["x0"] - X0).square().flatten(1).mean(dim=1)
    torch.testing.assert_close(losses["mse"], error * (1 + share / (1 - share)), rtol=1e-4, atol=0)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
def test_networks_that_know_the_same_draw_the_same_pictures(sampler: Literal["ddpm", "ddim", "dpm++"]) -> None:
    """A network that knows the mean picture only, asked for the noise and asked for v."""
    drawn = {}
    for prediction in ("noise", "v"):
        diffusion = GaussianDiffusion("linear", respacing="20", prediction=prediction)
        shares = torch.from_numpy(diffusion.coefficients.alphas_cumprod).float()
        times = diffusion.model_time(torch.arange(20))

        def network(
            x_t: Tensor, time: Tensor, kind: str = prediction, shares: Tensor = shares, times: Tensor = times
        ) -> Tensor:
            share = shares[(times == time[0]).nonzero()[0, 0]]
            noise = (x_t - share.sqrt() * X0) / (1 - share).sqrt()
            return with_place(noise if kind == "noise" else share.sqrt() * noise - (1 - share).sqrt() * X0)

        generator = torch.Generator().manual_seed(2)
        drawn[prediction] = diffusion.sample(
            network, X0.shape, NOISE, sampler, step_noise=lambda _, g=generator: torch.randn(X0.shape, generator=g)
        )
    torch.testing.assert_close(drawn["noise"], drawn["v"], rtol=0, atol=2e-4)
    torch.testing.assert_close(drawn["v"], X0, rtol=0, atol=2e-4)
