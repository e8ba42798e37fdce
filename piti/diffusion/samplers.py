"""One step of each sampler from x_t to x_{t-1}, the noise of each picture, and the quantisation between the two
networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from piti.diffusion.schedule import Coefficients
from piti.seeds import seed_of

_QUADRATURE_POINTS = 16
_INITIAL = -1  # number of the step whose noise sampling begins with


class Prediction(NamedTuple):
    """The predictions in a network's output: mean and log variance of x_{t-1}, x_0 and noise; each (N, 3, H, W)."""

    mean: Tensor
    log_variance: Tensor
    x0: Tensor
    noise: Tensor


class Table:
    """A process's coefficients as float64 tensors, copied once to each device that needs them."""

    def __init__(self, coefficients: Coefficients) -> None:
        self._coefficients = coefficients
        self._on_device: dict[torch.device, dict[str, Tensor]] = {}

    def at(self, name: str, t: Tensor, like: Tensor) -> Tensor:
        """Coefficient `name` for each picture's timestep `t` (N,), shaped to broadcast over `like`, in its type."""
        table = self._on_device.get(t.device)
        if table is None:
            table = {
                field.name: torch.from_numpy(getattr(self._coefficients, field.name)).to(t.device)
                for field in fields(self._coefficients)
            }
            self._on_device[t.device] = table
        return table[name][t].to(like.dtype).view(-1, *[1] * (like.dim() - 1))


class Step(Protocol):
    def __call__(self, predicted: Prediction, x_t: Tensor, t: Tensor, number: int) -> Tensor:
        """x_{t-1} from x_t. All entries of `t` are the same timestep; `number` counts the steps before this one."""
        ...


class AncestralStep:
    """DDPM: x_{t-1} ~ N(mean, learned variance); the last step adds no noise."""

    def __init__(self, num_timesteps: int, draw: Callable[[int], Tensor]) -> None:
        self._last_number = num_timesteps - 1
        self._draw = draw

    def __call__(self, predicted: Prediction, x_t: Tensor, t: Tensor, number: int) -> Tensor:
        if number == self._last_number:
            return predicted.mean
        return predicted.mean + torch.exp(0.5 * predicted.log_variance) * self._draw(number)


class ImplicitStep:
    """DDIM (Song et al., ICLR 2021, equation 12 without noise)."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def __call__(self, predicted: Prediction, x_t: Tensor, t: Tensor, number: int) -> Tensor:
        wide = torch.empty(0, 1, 1, 1, dtype=torch.float64)
        share_before = self._table.at("alphas_cumprod_prev", t, wide)
        direction = (1 - share_before).clamp(min=0).sqrt().to(x_t.dtype)
        # Derived again from x_0, which may have been clipped.
        scaled = self._table.at("sqrt_recip_alphas_cumprod", t, x_t) * x_t
        noise = (scaled - predicted.x0) / self._table.at("sqrt_recipm1_alphas_cumprod", t, x_t)
        return share_before.sqrt().to(x_t.dtype) * predicted.x0 + direction * noise


class _Path:
    """The kept steps of a process by index: alpha and sigma of x_t = alpha x_0 + sigma noise, and log(alpha / sigma).

    A linear combination of x_t and predictions of x_0 leads from one step to another, exactly if the prediction of x_0
    follows the assumed polynomial in between (Lu et al., 2022, proposition 4.1). `final_share` is a_T of the whole
    process.
    """

    def __init__(self, coefficients: Coefficients, final_share: float) -> None:
        self.alpha: list[float] = coefficients.sqrt_alphas_cumprod.tolist()
        self.sigma: list[float] = coefficients.sqrt_one_minus_alphas_cumprod.tolist()
        self.last = len(self.alpha) - 1
        self.half_log_snr = [
            math.log(alpha) - math.log(sigma) for alpha, sigma in zip(self.alpha, self.sigma, strict=True)
        ]
        self._final_share = final_share

    def begin(self, noise: Tensor, x0: Tensor) -> Tensor:
        """x_t at the noisiest kept step, for `noise` that is x_t at the whole process's last step.

        If a respacing leaves out the noisiest steps, x_t at the noisiest kept step holds a little of x_0 that pure
        noise lacks: less than a level, but equal in every pixel, so that without it another picture results
        (docs/performance.md). One DDIM step with the prediction `x0` from pure noise adds it. If the last step is kept,
        `noise` is returned unchanged.
        """
        alpha, sigma = math.sqrt(self._final_share), math.sqrt(1 - self._final_share)
        shrunk = self.sigma[self.last] / sigma
        return shrunk * noise + (self.alpha[self.last] - alpha * shrunk) * x0


class SolverStep:
    """DPM-Solver++(2M) (Lu et al., 2022, algorithm 2): second order in the half log signal-to-noise ratio.

    The first step and the last (to x_0, where that ratio is infinite) are of first order. It keeps the previous step's
    prediction, so use an instance for one run only.
    """

    def __init__(self, coefficients: Coefficients, final_share: float) -> None:
        self._path = _Path(coefficients, final_share)
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
    polynomials are integrated exactly, which is the paper's variant with varying coefficients (UniPC_v). Of third order
    or better; of lower order in the first two steps. Use an instance for one run only.
    """

    _ORDER = 3

    def __init__(self, coefficients: Coefficients, final_share: float) -> None:
        self._path = _Path(coefficients, final_share)
        self._x_before: Tensor | None = None
        self._predictions: list[tuple[float, Tensor]] = []  # log(alpha / sigma) and x_0 of the last three steps

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
        """The step from `x` at `index` to the next one, with x_0 on the polynomial through `predictions`."""
        path = self._path
        nodes = [node for node, _ in predictions]
        weights = prediction_weights(nodes, path.half_log_snr[index], path.half_log_snr[index - 1])
        moved: Tensor = (path.sigma[index - 1] / path.sigma[index]) * x
        for weight, (_, x0) in zip(weights, predictions, strict=True):
            moved = moved + (path.alpha[index - 1] * weight) * x0
        return moved


def prediction_weights(nodes: Sequence[float], begin: float, end: float) -> list[float]:
    """Weights of the predictions of x_0 at `nodes`, for a step from `begin` to `end`; all are values of log(alpha /
    sigma).

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


class PictureNoise:
    """Standard normal noise for a batch of pictures of one `shape` (C, H, W), one seed a picture.

    Each number depends on (seed, step, position) alone. It is drawn on the CPU, so that it is the same for every
    device.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> None:
        self._seeds = list(seeds)
        self._shape = tuple(shape)
        self._device = torch.device(device)

    def initial(self) -> Tensor:
        """The noise that sampling begins with, (N, C, H, W) float32."""
        return self._draw(_INITIAL)

    def step(self, number: int) -> Tensor:
        """The noise added in sampling step `number` (0, 1, ...), (N, C, H, W) float32."""
        return self._draw(number)

    def _draw(self, number: int) -> Tensor:
        pictures = []
        for seed in self._seeds:
            generator = torch.Generator().manual_seed(seed_of(seed, number))
            pictures.append(torch.randn(self._shape, generator=generator))
        return torch.stack(pictures).to(self._device)


def quantize_8bit(images: Tensor) -> Tensor:
    """Pictures in [-1, 1], rounded as if they had been stored with 8 bits.

    Truncates as published (image_sample.py), so the upsampler gets inputs in the format of its training data. Values
    outside [-1, 1] are clamped.
    """
    return (127.5 * (images.clamp(-1, 1) + 1.0)).floor() / 127.5 - 1.0
