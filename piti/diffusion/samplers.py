"""One step of each sampler, from x_t to x_{t-1}, and the quantisation between the two networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from piti.diffusion.gaussian import GaussianDiffusion, Prediction


class Step(Protocol):
    def __call__(self, predicted: Prediction, x_t: Tensor, t: Tensor, number: int) -> Tensor:
        """x_{t-1} from x_t; all of `t` is the same timestep, `number` counts the steps done before."""
        ...


class AncestralStep:
    """DDPM: x_{t-1} ~ N(mean, learned variance); the last step adds no noise."""

    def __init__(self, diffusion: GaussianDiffusion, draw: Callable[[int], Tensor]) -> None:
        self._last_number = diffusion.num_timesteps - 1
        self._draw = draw

    def __call__(self, predicted: Prediction, x_t: Tensor, t: Tensor, number: int) -> Tensor:
        if number == self._last_number:
            return predicted.mean
        return predicted.mean + torch.exp(0.5 * predicted.log_variance) * self._draw(number)


class ImplicitStep:
    """DDIM (Song et al., ICLR 2021, equation 12); the last step adds no noise."""

    def __init__(self, diffusion: GaussianDiffusion, draw: Callable[[int], Tensor], eta: float) -> None:
        self._diffusion = diffusion
        self._draw = draw
        self._eta = eta

    def deviation(self, t: Tensor) -> Tensor:
        """Standard deviation of the added noise at timesteps t, (N,) float64: eta times that of the posterior."""
        like = torch.empty(0, dtype=torch.float64)
        return self._eta * self._diffusion.at("posterior_variance", t, like).sqrt()

    def __call__(self, predicted: Prediction, x_t: Tensor, t: Tensor, number: int) -> Tensor:
        wide = torch.empty(0, 1, 1, 1, dtype=torch.float64)
        share_before = self._diffusion.at("alphas_cumprod_prev", t, wide)
        sigma = self.deviation(t).view(-1, 1, 1, 1)
        direction = (1 - share_before - sigma**2).clamp(min=0).sqrt().to(x_t.dtype)
        # Derived again from x_0, which may have been clipped.
        noise = self._diffusion.noise_from_x0(x_t, t, predicted.x0)
        mean = share_before.sqrt().to(x_t.dtype) * predicted.x0 + direction * noise
        if self._eta == 0 or number == self._diffusion.num_timesteps - 1:
            return mean
        return mean + sigma.to(x_t.dtype) * self._draw(number)


class SolverStep:
    """DPM-Solver++(2M) (Lu et al., 2022, algorithm 2): second order in the half log signal-to-noise ratio.

    The first step and the last (to x_0, where that ratio is infinite) are of first order. It remembers the step
    before, so an instance serves one run only.
    """

    def __init__(self, diffusion: GaussianDiffusion) -> None:
        self._diffusion = diffusion
        self._x0_before: Tensor | None = None
        self._last_h = 0.0
        self._alpha: list[float] = diffusion.coefficients.sqrt_alphas_cumprod.tolist()
        self._sigma: list[float] = diffusion.coefficients.sqrt_one_minus_alphas_cumprod.tolist()
        self._half_log_snr = [
            math.log(alpha) - math.log(sigma) for alpha, sigma in zip(self._alpha, self._sigma, strict=True)
        ]

    def __call__(self, predicted: Prediction, x_t: Tensor, t: Tensor, number: int) -> Tensor:
        index = self._diffusion.num_timesteps - 1 - number
        if index == 0:
            return predicted.x0
        h = self._half_log_snr[index - 1] - self._half_log_snr[index]
        x0 = predicted.x0
        if self._x0_before is not None:
            x0 = x0 + (x0 - self._x0_before) * (h / (2 * self._last_h))
        self._x0_before, self._last_h = predicted.x0, h
        moved: Tensor = (self._sigma[index - 1] / self._sigma[index]) * x_t
        return moved - self._alpha[index - 1] * math.expm1(-h) * x0


def quantize_8bit(images: Tensor) -> Tensor:
    """Pictures in [-1, 1] as they are after having been stored with 8 bits, again in [-1, 1].

    Truncates as published (image_sample.py), so the upsampler sees what it saw in its training data's format.
    Values outside of [-1, 1] are clamped.
    """
    return (127.5 * (images.clamp(-1, 1) + 1.0)).floor() / 127.5 - 1.0
