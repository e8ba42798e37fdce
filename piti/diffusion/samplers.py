"""One step of each sampler, from x_t to x_{t-1}, and the quantisation between the two networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from piti.diffusion.gaussian import GaussianDiffusion, Prediction

_QUADRATURE_POINTS = 16


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


class _Path:
    """Where a process's kept steps lie: x_t = alpha x_0 + sigma noise, and log(alpha / sigma), by index.

    A linear combination of x_t and predictions of x_0 leads from one step to another exactly, but for how x_0's
    prediction changes in between (Lu et al., 2022, proposition 4.1).
    """

    def __init__(self, diffusion: GaussianDiffusion) -> None:
        self.last = diffusion.num_timesteps - 1
        self.alpha: list[float] = diffusion.coefficients.sqrt_alphas_cumprod.tolist()
        self.sigma: list[float] = diffusion.coefficients.sqrt_one_minus_alphas_cumprod.tolist()
        self.half_log_snr = [
            math.log(alpha) - math.log(sigma) for alpha, sigma in zip(self.alpha, self.sigma, strict=True)
        ]
        self._final_share = diffusion.final_share

    def begin(self, noise: Tensor, x0: Tensor) -> Tensor:
        """x_t at the noisiest kept step, for `noise` that is x_t at the whole process's last step.

        Where a respacing leaves out the noisiest steps, pure noise lacks the little of x_0 that is there. It is less
        than a level, but the same in every pixel, and decides for another picture (benchmarks/few_steps.py). So one
        step of DDIM leads there, with the prediction `x0` that was made from pure noise: it hardly changes before.
        Nothing changes where the last step is kept.
        """
        alpha, sigma = math.sqrt(self._final_share), math.sqrt(1 - self._final_share)
        shrunk = self.sigma[self.last] / sigma
        return shrunk * noise + (self.alpha[self.last] - alpha * shrunk) * x0


class SolverStep:
    """DPM-Solver++(2M) (Lu et al., 2022, algorithm 2): second order in the half log signal-to-noise ratio.

    The first step and the last (to x_0, where that ratio is infinite) are of first order. It remembers the step
    before, so an instance serves one run only.
    """

    def __init__(self, diffusion: GaussianDiffusion) -> None:
        self._path = _Path(diffusion)
        self._x0_before: Tensor | None = None
        self._last_h = 0.0

    def __call__(self, predicted: Prediction, x_t: Tensor, t: Tensor, number: int) -> Tensor:
        path = self._path
        index = path.last - number
        if index == 0:
            return predicted.x0
        h = path.half_log_snr[index - 1] - path.half_log_snr[index]
        x0 = predicted.x0
        if number == 0:
            x_t = path.begin(x_t, x0)
        if self._x0_before is not None:
            x0 = x0 + (x0 - self._x0_before) * (h / (2 * self._last_h))
        self._x0_before, self._last_h = predicted.x0, h
        moved: Tensor = (path.sigma[index - 1] / path.sigma[index]) * x_t
        return moved - path.alpha[index - 1] * math.expm1(-h) * x0


class CorrectedSolverStep:
    """UniPC-3 on predictions of x_0 (Zhao et al., NeurIPS 2023, algorithms 1 and 2), one network call a step.

    The prediction at x_t first corrects x_t itself (UniC: the polynomial in log(alpha / sigma) through up to three
    predictions before it and its own), then the polynomial through the last three leads to x_{t-1} (UniP). The
    polynomials are integrated exactly, which is the paper's variant with varying coefficients (UniPC_v). Of third
    order or better; lower in the first two steps. An instance serves one run only.
    """

    _ORDER = 3

    def __init__(self, diffusion: GaussianDiffusion) -> None:
        self._path = _Path(diffusion)
        self._x_before: Tensor | None = None
        self._predictions: list[tuple[float, Tensor]] = []  # log(alpha / sigma) and x_0, the last three

    def __call__(self, predicted: Prediction, x_t: Tensor, t: Tensor, number: int) -> Tensor:
        index = self._path.last - number
        if index == 0:
            return predicted.x0
        here = (self._path.half_log_snr[index], predicted.x0)
        if self._x_before is None:
            x_t = self._path.begin(x_t, predicted.x0)
        else:
            x_t = self._move(self._x_before, index + 1, [*self._predictions, here])
        self._predictions = [*self._predictions, here][-self._ORDER :]
        self._x_before = x_t
        return self._move(x_t, index, self._predictions)

    def _move(self, x: Tensor, index: int, predictions: Sequence[tuple[float, Tensor]]) -> Tensor:
        """From `x` at step `index` to the step after it, x_0 following the polynomial through `predictions`."""
        path = self._path
        nodes = [node for node, _ in predictions]
        weights = prediction_weights(nodes, path.half_log_snr[index], path.half_log_snr[index - 1])
        moved: Tensor = (path.sigma[index - 1] / path.sigma[index]) * x
        for weight, (_, x0) in zip(weights, predictions, strict=True):
            moved = moved + (path.alpha[index - 1] * weight) * x0
        return moved


def prediction_weights(nodes: Sequence[float], begin: float, end: float) -> list[float]:
    """Weights of x_0's predictions at `nodes` in a step from `begin` to `end`, all of them log(alpha / sigma).

    The integral of exp(l - end) times each node's Lagrange polynomial over l from begin to end; the weights add up to
    1 - exp(begin - end). By Gauss-Legendre quadrature, to 1e-12 for steps up to 5.
    """
    points, masses = np.polynomial.legendre.leggauss(_QUADRATURE_POINTS)
    half = (end - begin) / 2
    at = begin + half * (points + 1)
    masses = half * masses * np.exp(at - end)
    return [
        float(masses @ np.prod([(at - other) / (node - other) for other in nodes if other != node] or [at**0], axis=0))
        for node in nodes
    ]


def quantize_8bit(images: Tensor) -> Tensor:
    """Pictures in [-1, 1] as they are after having been stored with 8 bits, again in [-1, 1].

    Truncates as published (image_sample.py), so the upsampler sees what it saw in its training data's format.
    Values outside of [-1, 1] are clamped.
    """
    return (127.5 * (images.clamp(-1, 1) + 1.0)).floor() / 127.5 - 1.0
