"""The diffusion process of one network: noising, training losses, and drawing pictures.

Equation numbers are the paper's (arXiv 2205.12952). The definitions are those of openai/glide-text2im and
PITI-Synthesis/PITI (gaussian_diffusion.py): learned-range variance, rescaled variational bound. No loss weight
appears here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from piti.config import Sampler
from piti.diffusion.samplers import (
    AncestralStep,
    CorrectedSolverStep,
    ImplicitStep,
    Prediction,
    SolverStep,
    Step,
    Table,
)
from piti.diffusion.schedule import Coefficients, betas_of, respaced_betas, respaced_timesteps

ModelFunction = Callable[[Tensor, Tensor], Tensor]

_MODEL_TIME = 1000.0  # networks get the time on a scale of 0 to 1000, whatever the number of steps


class GaussianDiffusion:
    """A forward process of `steps` steps, of which `respacing` keeps some (see `respaced_timesteps`).

    Networks predict the noise, or with `prediction` v the mixture v = sqrt(a_t) noise - sqrt(1 - a_t) x_0. A timestep
    `t` is an index (N,), int64, into the kept steps: 0..num_timesteps-1. Networks get the original step's time, as
    float32 on a scale of 0..1000. Coefficients are float64 and cast to the pictures' type at use.
    """

    def __init__(
        self,
        schedule: str = "squaredcos_cap_v2",
        steps: int = 1000,
        respacing: str | Sequence[int] | None = None,
        prediction: Literal["noise", "v"] = "noise",
    ) -> None:
        self.prediction = prediction
        betas = betas_of(schedule, steps)
        self.timestep_map = respaced_timesteps(betas, respacing)
        self.steps = steps
        self.final_share = float(np.prod(1.0 - betas))  # a_T of the whole process, whose x_T is the initial noise
        self.coefficients = Coefficients.of(respaced_betas(betas, self.timestep_map))
        self._table = Table(self.coefficients)
        self._times: dict[torch.device, Tensor] = {}

    @property
    def num_timesteps(self) -> int:
        """How many steps are kept."""
        return len(self.timestep_map)

    def at(self, name: str, t: Tensor, like: Tensor) -> Tensor:
        """Coefficient `name` for each picture's timestep, shaped to broadcast over `like`, in its type."""
        return self._table.at(name, t, like)

    def model_time(self, t: Tensor) -> Tensor:
        """The time that the network gets for timesteps `t`: (N,) float32 in 0..1000."""
        times = self._times.get(t.device)
        if times is None:
            times = torch.tensor(self.timestep_map, device=t.device).float() * (_MODEL_TIME / self.steps)
            self._times[t.device] = times
        return times[t]

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Equation 2: x_t for pictures x0 (N, 3, H, W) in [-1, 1] and standard normal noise of the same shape."""
        return self.at("sqrt_alphas_cumprod", t, x0) * x0 + self.at("sqrt_one_minus_alphas_cumprod", t, x0) * noise

    def q_posterior(self, x0: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (N, 3, H, W) and log variance (broadcastable) of q(x_{t-1} | x_t, x_0); the latter is clipped at t=0."""
        mean = self.at("posterior_mean_coef1", t, x_t) * x0 + self.at("posterior_mean_coef2", t, x_t) * x_t
        return mean, self.at("posterior_log_variance_clipped", t, x_t)

    def x0_from_noise(self, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Equation 2 solved for x_0."""
        return (
            self.at("sqrt_recip_alphas_cumprod", t, x_t) * x_t - self.at("sqrt_recipm1_alphas_cumprod", t, x_t) * noise
        )

    def velocity(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """v = sqrt(a_t) noise - sqrt(1 - a_t) x_0 (Salimans and Ho, arXiv 2202.00512)."""
        signal = self.at("sqrt_alphas_cumprod", t, x0)
        return signal * noise - self.at("sqrt_one_minus_alphas_cumprod", t, x0) * x0

    def _picture_and_noise(self, predicted: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x_0 and noise, (N, 3, H, W) each, from x_t and a predicted noise or v."""
        if self.prediction == "noise":
            return self.x0_from_noise(x_t, t, predicted), predicted
        signal, deviation = self.at("sqrt_alphas_cumprod", t, x_t), self.at("sqrt_one_minus_alphas_cumprod", t, x_t)
        return signal * x_t - deviation * predicted, deviation * x_t + signal * predicted

    def predict(self, output: Tensor, x_t: Tensor, t: Tensor, clip: bool) -> Prediction:
        """Read a network's output (N, 6, H, W): noise or v, and the log variance's place between its two bounds.

        The place is -1 at the posterior's variance and 1 at b_t. `clip` clamps x_0 to [-1, 1] before the mean is
        computed, as is usual in sampling. Raises ValueError for an output of another shape.
        """
        n, c = x_t.shape[:2]
        if output.shape != (n, 2 * c, *x_t.shape[2:]):
            raise ValueError(f"a model gave {tuple(output.shape)} for pictures {tuple(x_t.shape)}")
        predicted, place = output.to(x_t.dtype).chunk(2, dim=1)
        share = (place + 1) / 2
        lowest = self.at("posterior_log_variance_clipped", t, x_t)
        log_variance = share * self.at("log_betas", t, x_t) + (1 - share) * lowest
        x0, noise = self._picture_and_noise(predicted, x_t, t)
        if clip:
            x0 = x0.clamp(-1, 1)
        return Prediction(self.q_posterior(x0, x_t, t)[0], log_variance, x0, noise)

    def training_losses(self, model_fn: ModelFunction, x0: Tensor, t: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Equation 3 and the variational bound, for each picture.

        `model_fn(x_t, time)` closes over the conditions. Returns `mse` (N,), mean squared error of the noise or v; `vb`
        (N,), the bound's term in bits per value, times num_timesteps/1000, with gradient to the variance only; and
        `x0` (N, 3, H, W), the predicted picture with gradient, not clamped.
        """
        x_t = self.q_sample(x0, t, noise)
        output = model_fn(x_t, self.model_time(t)).to(x0.dtype)
        predicted, place = output.chunk(2, dim=1)
        frozen = torch.cat([predicted.detach(), place], dim=1)
        target = noise if self.prediction == "noise" else self.velocity(x0, noise, t)
        bound = self._variational_term(frozen, x0, x_t, t)
        return {
            "mse": _mean_per_picture((target - predicted) ** 2),
            "vb": bound * (self.num_timesteps / _MODEL_TIME),
            "x0": self._picture_and_noise(predicted, x_t, t)[0],
        }

    def _variational_term(self, output: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), at t=0 the decoder's likelihood instead; bits per value."""
        true_mean, true_log_variance = self.q_posterior(x0, x_t, t)
        predicted = self.predict(output, x_t, t, clip=False)
        divergence = 0.5 * (
            -1.0
            + predicted.log_variance
            - true_log_variance
            + torch.exp(true_log_variance - predicted.log_variance)
            + (true_mean - predicted.mean) ** 2 * torch.exp(-predicted.log_variance)
        )
        likelihood = _discretized_log_likelihood(x0, predicted.mean, 0.5 * predicted.log_variance)
        nats = torch.where(t == 0, -_mean_per_picture(likelihood), _mean_per_picture(divergence))
        return nats / math.log(2.0)

    @torch.no_grad()
    def sample(
        self,
        model_fn: ModelFunction,
        shape: Sequence[int],
        noise: Tensor,
        sampler: Sampler = "ddpm",
        step_noise: Callable[[int], Tensor] | None = None,
        *,
        clip: bool = True,
    ) -> Tensor:
        """Draw pictures (N, 3, H, W), in [-1, 1] if `clip`, from initial `noise` of that `shape`.

        `step_noise(i)` gives the noise added in step i = 0, 1, ... (None: torch's global generator); `ddpm` takes
        it at all steps but the last, the other samplers never.
        Raises ValueError if noise has another shape or the sampler is unknown.
        """
        if tuple(noise.shape) != tuple(shape):
            raise ValueError(f"the initial noise has shape {tuple(noise.shape)}, wanted {tuple(shape)}")
        draw = step_noise if step_noise is not None else (lambda _: torch.randn_like(noise))
        if sampler == "ddpm":
            step: Step = AncestralStep(self.num_timesteps, draw)
        elif sampler == "ddim":
            step = ImplicitStep(self._table)
        elif sampler == "dpm++":
            step = SolverStep(self.coefficients, self.final_share)
        elif sampler == "unipc":
            step = CorrectedSolverStep(self.coefficients, self.final_share)
        else:
            raise ValueError(f"unknown sampler {sampler!r}, use ddpm, ddim, dpm++ or unipc")
        x_t = noise
        for done, index in enumerate(reversed(range(self.num_timesteps))):
            t = torch.full((len(x_t),), index, device=x_t.device)
            output = model_fn(x_t, self.model_time(t))
            x_t = step(self.predict(output, x_t, t, clip), x_t, t, done)
        return x_t


def _mean_per_picture(values: Tensor) -> Tensor:
    return values.flatten(1).mean(dim=1)


def _discretized_log_likelihood(x: Tensor, mean: Tensor, log_deviation: Tensor) -> Tensor:
    """Log probability in nats of 8-bit pictures `x` in [-1, 1] under a Gaussian cut into 256 bins, elementwise.

    The outer bins reach to infinity. The normal distribution function is the published code's tanh approximation, which
    changes losses in the fourth digit.
    """

    def cumulative(z: Tensor) -> Tensor:
        return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * z**3)))

    precision = torch.exp(-log_deviation)
    upper = cumulative(precision * (x - mean + 1.0 / 255.0))
    lower = cumulative(precision * (x - mean - 1.0 / 255.0))
    inside = torch.where(x > 0.999, 1.0 - lower, upper - lower)
    return torch.log(torch.where(x < -0.999, upper, inside).clamp(min=1e-12))
