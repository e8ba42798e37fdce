"""Samplers against a Gaussian, whose best noise prediction and whose exact flow are known in closed form."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from piti.diffusion import GaussianDiffusion
from piti.diffusion.samplers import prediction_weights

MEAN = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64).view(1, 3, 1, 1)
DEVIATION = 0.25


def exact_model(
    diffusion: GaussianDiffusion,
    *,
    mean: Tensor | float = MEAN,
    deviation: float = DEVIATION,
) -> Any:
    """What a perfect network would answer for pixels N(mean, deviation^2): best noise, true reverse variance.

    The true variance of x_{t-1} given x_t is the posterior's and the part of x_0 that x_t leaves open.
    """
    c = diffusion.coefficients
    index_of = {float(diffusion.model_time(torch.tensor([i]))): i for i in range(diffusion.num_timesteps)}

    def model_fn(x_t: Tensor, time: Tensor) -> Tensor:
        i = index_of[float(time[0])]
        a = float(c.alphas_cumprod[i])
        spread = a * deviation**2 + 1 - a
        noise = math.sqrt(1 - a) * (x_t - math.sqrt(a) * mean) / spread
        reverse = c.posterior_variance[i] + c.posterior_mean_coef1[i] ** 2 * deviation**2 * (1 - a) / spread
        lowest, highest = c.posterior_log_variance_clipped[i], c.log_betas[i]
        place = -1.0 if i == 0 else 2 * (math.log(reverse) - lowest) / (highest - lowest) - 1
        return torch.cat([noise, torch.full_like(noise, place)], dim=1)

    return model_fn


def exact_flow(
    diffusion: GaussianDiffusion, x_start: Tensor, mean: Tensor | float = MEAN, deviation: float = DEVIATION
) -> Tensor:
    """Where the probability flow takes x_T of the whole process, and the x_0 that is predicted there."""
    share = np.append(diffusion.coefficients.alphas_cumprod, diffusion.final_share)
    spread = np.sqrt(share * deviation**2 + 1 - share)
    x = math.sqrt(share[0]) * mean + spread[0] / spread[-1] * (x_start - math.sqrt(share[-1]) * mean)
    noise = math.sqrt(1 - share[0]) * (x - math.sqrt(share[0]) * mean) / spread[0] ** 2
    return (x - math.sqrt(1 - share[0]) * noise) / math.sqrt(share[0])


def errors_of(sampler: Any, counts: list[int]) -> list[float]:
    """Largest distance from the exact flow, for ever more steps of one process of 20,000 fine steps."""
    errors = []
    start = torch.linspace(-2, 2, 3 * 16, dtype=torch.float64).view(1, 3, 4, 4)
    for count in counts:
        diffusion = GaussianDiffusion("linear", steps=20_000, respacing=f"logsnr{count}")
        drawn = diffusion.sample(exact_model(diffusion), start.shape, start, sampler, clip=False)
        errors.append(float((drawn - exact_flow(diffusion, start)).abs().max()))
    return errors


def test_dpm_solver_is_of_second_order() -> None:
    """Twice the steps, a quarter of the error (DDIM, of first order: half)."""
    counts = [20, 40, 80, 160]
    solver, implicit = errors_of("dpm++", counts), errors_of("ddim", counts)
    orders = [math.log2(a / b) for a, b in pairwise(solver)]
    assert all(order > 1.8 for order in orders), (solver, orders)
    assert orders[-1] < 2.4
    first = [math.log2(a / b) for a, b in pairwise(implicit)]
    assert all(0.7 < order < 1.3 for order in first), (implicit, first)
    assert solver[0] < implicit[0] / 3


def test_unipc_is_of_third_order() -> None:
    """Twice the steps, an eighth of the error, until the process's own first steps near x_0 are too coarse for more."""
    counts = [20, 40, 80]
    corrected, solver = errors_of("unipc", counts), errors_of("dpm++", counts)
    orders = [math.log2(a / b) for a, b in pairwise(corrected)]
    assert all(order > 2.7 for order in orders), (corrected, orders)
    assert corrected[0] < solver[0] / 8
    assert corrected[1] < solver[1] / 30


@pytest.mark.parametrize("sampler", ["dpm++", "unipc"])
def test_solvers_begin_where_the_process_ends(sampler: Any) -> None:
    """On the cosine schedule logsnr leaves out the four noisiest steps; the mean that x_0 has there is not lost.

    One number here is a 64x64 picture's brightness as a coordinate of length 1: pixels' mean and deviation times
    sqrt(3 * 64 * 64). Taking the noise for x_t of the first kept step misses alpha times the mean, which the flow
    makes 7, an eighth of the deviation. Less than a sixth of that may be left.
    """
    mean, deviation = 0.2 * math.sqrt(3 * 64**2), 0.5 * math.sqrt(3 * 64**2)
    diffusion = GaussianDiffusion("squaredcos_cap_v2", respacing="logsnr25")
    assert diffusion.timestep_map[-1] < diffusion.steps - 1
    start = torch.zeros(1, 3, 1, 1, dtype=torch.float64)
    model = exact_model(diffusion, mean=mean, deviation=deviation)
    drawn = diffusion.sample(model, start.shape, start, sampler, clip=False)
    lost = math.sqrt(diffusion.coefficients.alphas_cumprod[-1]) * mean * deviation
    assert lost > deviation / 8
    assert float((drawn - exact_flow(diffusion, start, mean, deviation)).abs().max()) < lost / 6


def test_prediction_weights_integrate_polynomials() -> None:
    """The integral of exp(l - end) l^k, k = 0..3, from 1 to 3 through four nodes: by parts, to 1e-12."""
    nodes = [-2.0, 0.0, 1.0, 3.0]
    weights = prediction_weights(nodes, 1.0, 3.0)
    left = math.exp(-2.0)
    integrals = [1 - left]
    for k in (1, 2, 3):
        integrals.append(3.0**k - left - k * integrals[-1])
    found = [sum(w * node**k for w, node in zip(weights, nodes, strict=True)) for k in range(4)]
    np.testing.assert_allclose(found, integrals, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("sampler", "respacing", "tolerance"),
    [("ddpm", "25", 0.01), ("ddim", "logsnr100", 0.06), ("dpm++", "logsnr25", 0.03), ("unipc", "logsnr15", 0.01)],
)
def test_samplers_recover_mean_and_covariance(sampler: Any, respacing: str, tolerance: float) -> None:
    """From 30,000 independent pixels a channel: mean within 0.01, covariance within `tolerance` of the variance.

    DDPM with the true reverse variance is exact in any number of steps; DDIM is of first order (variance 5 % short
    in 100 steps), DPM-Solver++ 2 % off in 25. Besides, chance is allowed for: three standard errors, of a mean
    DEVIATION / sqrt(n), of a covariance DEVIATION^2 sqrt(2 / n).
    """
    diffusion = GaussianDiffusion("squaredcos_cap_v2", respacing=respacing)
    generator = torch.Generator().manual_seed(0)
    shape = (3, 3, 100, 100)
    drawn = diffusion.sample(
        exact_model(diffusion),
        shape,
        torch.randn(shape, generator=generator, dtype=torch.float64),
        sampler,
        lambda _: torch.randn(shape, generator=generator, dtype=torch.float64),
        clip=False,
    )
    pixels = drawn.transpose(0, 1).flatten(1)
    n = pixels.shape[1]
    assert float((pixels.mean(1) - MEAN.flatten()).abs().max()) < 0.01 + 3 * DEVIATION / math.sqrt(n)
    wanted = DEVIATION**2 * torch.eye(3, dtype=torch.float64)
    allowed = DEVIATION**2 * (tolerance + 3 * math.sqrt(2 / n))
    assert float((pixels.cov() - wanted).abs().max()) < allowed
