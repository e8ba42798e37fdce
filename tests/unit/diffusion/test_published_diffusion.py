"""The diffusion process is the published one (golden vectors, see golden/README.md)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from piti.diffusion import GaussianDiffusion, LossSecondMomentSampler
from piti.diffusion.samplers import AncestralStep, ImplicitStep, Step, Table
from piti.diffusion.schedule import betas_of, respaced_timesteps

GOLDEN = Path(__file__).parent / "golden"
CASES = [("squaredcos_cap_v2", None), ("linear", None), ("squaredcos_cap_v2", "250"), ("linear", "fast27")]
NAMES: list[str | None] = [
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    None,  # log_one_minus_alphas_cumprod, which is not needed here
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
]
Maker = Callable[[str, tuple[int, ...]], Tensor]


def golden(schedule: str, respacing: str | None, what: str) -> Any:
    return np.load(GOLDEN / f"{schedule}-{respacing or 'all'}-{what}.npy")


def assert_close(ours: Tensor, published: Any, what: str, tolerance: float = 1e-5) -> None:
    """Within `tolerance` of the largest published value of each picture: float32 on both sides."""
    theirs = torch.from_numpy(published).double().flatten(1)
    difference = (ours.detach().double().flatten(1) - theirs).abs().amax(1)
    assert bool((difference <= tolerance * theirs.abs().amax(1)).all()), f"{what}: {difference}"


@pytest.mark.parametrize(("schedule", "respacing"), CASES)
def test_coefficients(schedule: str, respacing: str | None) -> None:
    published = golden(schedule, respacing, "coefficients")
    ours = GaussianDiffusion(schedule, respacing=respacing).coefficients
    for name, row in zip(NAMES, published, strict=True):
        if name is not None:
            np.testing.assert_allclose(getattr(ours, name), row, rtol=1e-12, atol=0, err_msg=name)


def test_respaced_timesteps() -> None:
    cases = json.loads((GOLDEN / "timesteps.json").read_text())
    assert len(cases) > 10
    for name, published in cases.items():
        steps, respacing = name.split("/", 1)
        assert respaced_timesteps(betas_of("linear", int(steps)), respacing) == published, name
    assert respaced_timesteps(betas_of("linear", 300), [10, 15, 20]) == cases["300/10,15,20"]


@pytest.fixture
def inputs(uniform: Maker, normal: Maker) -> dict[str, Tensor]:
    shape = (4, 3, 8, 8)
    x0 = uniform("x0", shape)
    x0[:, 0, 0], x0[:, 1, 1] = -1, 1  # reaches the outermost bins of the decoder's likelihood
    output = normal("output", (4, 6, 8, 8))
    output[:, 3:] = uniform("place", shape)
    return {"x0": x0.float(), "noise": normal("noise", shape).float(), "output": output.float()}


@pytest.mark.parametrize(("schedule", "respacing"), CASES)
def test_training_losses_and_their_gradient(schedule: str, respacing: str | None, inputs: dict[str, Tensor]) -> None:
    diffusion = GaussianDiffusion(schedule, respacing=respacing)
    t = torch.tensor([0, 1, diffusion.num_timesteps // 2, diffusion.num_timesteps - 1])
    output = inputs["output"].requires_grad_(True)
    times: list[Tensor] = []

    def model_fn(x_t: Tensor, time: Tensor) -> Tensor:
        times.append(time)
        return output

    losses = diffusion.training_losses(model_fn, inputs["x0"], t, inputs["noise"])
    (losses["mse"] + losses["vb"]).sum().backward()
    mse, vb, total, time = golden(schedule, respacing, "losses")
    np.testing.assert_allclose(losses["mse"].detach(), mse, rtol=1e-5)
    np.testing.assert_allclose(losses["vb"].detach(), vb, rtol=1e-5)
    np.testing.assert_allclose((losses["mse"] + losses["vb"]).detach(), total, rtol=1e-5)
    assert times[0].tolist() == time.tolist()
    assert output.grad is not None
    published = golden(schedule, respacing, "gradient")
    assert_close(output.grad[:, :3], published[:, :3], "gradient to the noise")
    assert_close(output.grad[:, 3:], published[:, 3:], "gradient to the variance")


@pytest.mark.parametrize(("schedule", "respacing"), CASES)
def test_posterior_and_single_steps(
    schedule: str, respacing: str | None, inputs: dict[str, Tensor], normal: Maker
) -> None:
    """One step of DDPM and of DDIM. DDIM's published coefficients are float32, ours float64."""
    diffusion = GaussianDiffusion(schedule, respacing=respacing)
    t = torch.tensor([0, 1, diffusion.num_timesteps // 2, diffusion.num_timesteps - 1])
    x_t = diffusion.q_sample(inputs["x0"], t, inputs["noise"])
    mean, log_variance = diffusion.q_posterior(inputs["x0"], x_t, t)
    raw, clipped = (diffusion.predict(inputs["output"], x_t, t, clip) for clip in (False, True))
    noise = normal("step noise", (4, 3, 8, 8)).float()
    stepped: dict[str, Step] = {
        "ddpm": AncestralStep(diffusion.num_timesteps, lambda _: noise),
        "ddim": ImplicitStep(Table(diffusion.coefficients)),
    }
    ours = {
        "x_t": x_t,
        "x0": raw.x0,
        "posterior mean": mean,
        "posterior variance": diffusion.at("posterior_variance", t, x_t).expand_as(x_t),
        "posterior log variance": log_variance.expand_as(x_t),
    }
    last = diffusion.num_timesteps - 1
    for name, step in stepped.items():
        # Steps are taken by whole batches; the first picture is at the last step, which adds no noise.
        final = step(type(clipped)(*(part[:1] for part in clipped)), x_t[:1], t[:1], last)
        others = step(clipped, x_t, t, 0)
        ours[name] = torch.cat([final, others[1:]])
    *steps, _ = golden(schedule, respacing, "steps")  # the last has eta 1, noise in DDIM, which no config asks for
    for (name, values), published in zip(ours.items(), steps, strict=True):
        assert_close(values[:, :, ::2, ::2], published, name)


def stand_in(x_t: Tensor, time: Tensor) -> Tensor:
    a = (time / 1000).view(-1, 1, 1, 1)
    return torch.cat([0.9 * torch.tanh(x_t) + 0.1 * torch.cos(3 * x_t + a), torch.sin(2 * x_t - a)], 1)


@pytest.mark.parametrize(("schedule", "respacing"), CASES[2:])
def test_whole_runs(schedule: str, respacing: str, normal: Maker) -> None:
    """27 and 250 steps in float32; rounding adds up over the steps, so agreement is to 1e-4."""
    diffusion = GaussianDiffusion(schedule, respacing=respacing)
    times: list[float] = []

    def model_fn(x_t: Tensor, time: Tensor) -> Tensor:
        times.append(float(time[0]))
        return stand_in(x_t, time)

    shape = (2, 3, 8, 8)
    start = normal("start", shape).float()
    drawn = diffusion.sample(model_fn, shape, start, "ddpm", lambda i: normal(f"step {i}", shape).float())
    assert times == golden(schedule, respacing, "times").tolist()
    ddpm, ddim = golden(schedule, respacing, "runs")
    assert_close(drawn, ddpm, "ddpm", 1e-4)
    assert_close(diffusion.sample(stand_in, shape, start, "ddim"), ddim, "ddim", 1e-4)


def test_second_moment_weights_after_a_fixed_history(normal: Maker) -> None:
    weights, loss_weights = np.load(GOLDEN / "second-moment-weights.npy")
    sampler = LossSecondMomentSampler(20)
    for losses in normal("history", (13, 20)).abs():
        sampler.update(torch.arange(20), losses)
    np.testing.assert_allclose(sampler.weights(), weights, rtol=1e-12)
    t, drawn_weights = sampler.sample(500, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(drawn_weights, loss_weights[t], rtol=1e-6)
