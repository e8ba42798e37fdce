"""What callers rely on while drawing pictures: own seeds, progress, clear errors, 8 bits between the networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from piti.diffusion import GaussianDiffusion, LossSecondMomentSampler, PictureNoise, UniformSampler, quantize_8bit
from piti.errors import CheckpointError, ConfigError

SHAPE = (3, 8, 8)


def stand_in(x_t: Tensor, time: Tensor) -> Tensor:
    return torch.cat([torch.tanh(x_t), torch.cos(x_t * 3)], 1)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++", "unipc"])
def test_a_picture_depends_on_its_own_seed_only(sampler: Any) -> None:
    """Alone, in a batch, or at another place of a batch: the same picture, bit for bit."""
    diffusion = GaussianDiffusion(respacing="8")

    def draw(seeds: list[int]) -> Tensor:
        noise = PictureNoise(seeds, SHAPE)
        return diffusion.sample(stand_in, (len(seeds), *SHAPE), noise.initial(), sampler, noise.step)

    batch = draw([11, 12, 13])
    assert torch.equal(draw([12]), batch[1:2])
    assert torch.equal(draw([13, 11]), batch[[2, 0]])
    assert not torch.equal(batch[0], batch[1])
    assert float(batch.abs().max()) <= 1


def test_picture_noise_is_normal_and_never_repeats_itself() -> None:
    noise = PictureNoise([1, 2], (3, 64, 64))
    draws = torch.stack([noise.initial(), noise.step(0), noise.step(1)]).flatten(2).flatten(0, 1)
    assert float(draws.mean().abs()) < 0.02
    assert abs(float(draws.std()) - 1) < 0.02
    assert float((torch.corrcoef(draws) - torch.eye(6)).abs().max()) < 0.05
    assert torch.equal(noise.step(1), noise.step(1))


def test_picture_noise_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    PictureNoise([1], SHAPE).initial()
    assert torch.equal(torch.rand(2), expected)


def test_misuse_is_named() -> None:
    diffusion = GaussianDiffusion(respacing="4")
    noise = torch.zeros(2, *SHAPE)
    with pytest.raises(ValueError, match="initial noise"):
        diffusion.sample(stand_in, (1, *SHAPE), noise)
    with pytest.raises(ValueError, match="unknown sampler"):
        diffusion.sample(stand_in, (2, *SHAPE), noise, "euler")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(2, 3, 8, 8\) for pictures"):
        diffusion.sample(lambda x_t, time: x_t, (2, *SHAPE), noise)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GaussianDiffusion("cosine"), "unknown noise schedule 'cosine'"),
        (lambda: GaussianDiffusion("linear", steps=10), "at least 20 steps"),
        (lambda: GaussianDiffusion(respacing="fast"), "cannot read the respacing 'fast'"),
        (lambda: GaussianDiffusion(respacing="ddimfast"), "cannot read the respacing 'ddimfast'"),
        (lambda: GaussianDiffusion(respacing="ddim999"), "exactly 999 of 1000"),
        (lambda: GaussianDiffusion(respacing="1001"), "a section of 1000 steps cannot give 1001"),
        (lambda: GaussianDiffusion(respacing="0"), "at least one step"),
        (lambda: GaussianDiffusion(respacing=[]), "at least one step"),
        (lambda: GaussianDiffusion(respacing="logsnr1"), "choose 2 to 1000"),
        (lambda: GaussianDiffusion(respacing="logsnrx"), "like logsnr50"),
    ],
)
def test_impossible_schedules_are_config_errors(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


def test_the_signal_of_kept_steps_is_the_original_one() -> None:
    """Respacing changes no a_t, and the network is told the original time."""
    full, short = GaussianDiffusion("linear"), GaussianDiffusion("linear", respacing="10,5")
    assert short.num_timesteps == 15
    np.testing.assert_allclose(
        short.coefficients.alphas_cumprod, full.coefficients.alphas_cumprod[short.timestep_map], rtol=1e-12
    )
    assert short.model_time(torch.arange(15)).tolist() == [float(step) for step in short.timestep_map]
    assert GaussianDiffusion(steps=250).model_time(torch.tensor([0, 1, 249])).tolist() == [0.0, 4.0, 996.0]


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_log_snr_spacing_is_even_where_there_are_steps_enough(schedule: str) -> None:
    """Always as many steps as asked, from 0; even to 0.15 except where the process itself is coarser."""
    for count in (2, 10, 25, 200, 1000):
        assert len(set(GaussianDiffusion(schedule, respacing=f"logsnr{count}").timestep_map)) == count
    diffusion = GaussianDiffusion(schedule, respacing="logsnr25")
    signal = diffusion.coefficients.alphas_cumprod
    distances = -np.diff(0.5 * np.log(signal / (1 - signal)))
    assert diffusion.timestep_map[0] == 0
    assert np.abs(distances[3:] - np.median(distances)).max() < 0.15


def test_a_single_step_goes_straight_to_the_prediction() -> None:
    diffusion = GaussianDiffusion(respacing="1")
    noise = torch.randn(1, *SHAPE)
    for sampler in ("ddpm", "ddim", "dpm++", "unipc"):
        drawn = diffusion.sample(stand_in, noise.shape, noise, sampler)
        assert torch.allclose(drawn, diffusion.predict(stand_in(noise, noise), noise, torch.tensor([0]), True).x0)


def test_training_losses_leave_the_predicted_picture_its_gradient() -> None:
    """vb trains the variance only; x0, for the picture losses, trains the noise only."""
    diffusion = GaussianDiffusion()
    output = torch.randn(2, 6, 8, 8, requires_grad=True)
    x0, noise, t = torch.rand(2, *SHAPE), torch.randn(2, *SHAPE), torch.tensor([5, 500])
    losses = diffusion.training_losses(lambda x_t, time: output, x0, t, noise)
    (by_bound,) = torch.autograd.grad(losses["vb"].sum(), output, retain_graph=True)
    (by_picture,) = torch.autograd.grad(losses["x0"].sum(), output)
    assert not by_bound[:, :3].any()
    assert by_bound[:, 3:].any()
    assert by_picture[:, :3].any()
    assert not by_picture[:, 3:].any()


def test_quantisation_is_that_of_8_bits() -> None:
    """256 levels, every level is its own, never more than one level down, as `(127.5 * (x + 1)).int()` does it."""
    levels = torch.arange(256) / 127.5 - 1
    fine = torch.linspace(-1.2, 1.2, 100_001)
    quantized = quantize_8bit(fine)
    assert torch.equal(quantized, (127.5 * (fine.clamp(-1, 1) + 1)).int() / 127.5 - 1)
    assert len(quantized.unique()) == 256
    assert bool(torch.isin(quantized, levels).all())
    assert float((fine.clamp(-1, 1) - quantized).max()) < 1 / 127.5 + 1e-6
    assert float((fine.clamp(-1, 1) - quantized).min()) > -1e-6


def test_uniform_sampler_covers_every_step_evenly() -> None:
    t, weights = UniformSampler(10).sample(20_000, torch.Generator().manual_seed(0))
    counts = torch.bincount(t, minlength=10).float()
    assert float((counts / 2000 - 1).abs().max()) < 0.1  # 4 standard errors are 0.085
    assert torch.equal(weights, torch.ones(20_000))


def test_importance_sampling_keeps_the_expected_loss() -> None:
    """However uneven: the weighted mean loss is the plain mean over all timesteps."""
    sampler = LossSecondMomentSampler(50, history=2)
    losses = torch.linspace(0.01, 3, 50, dtype=torch.float64)
    for _ in range(2):
        sampler.update(torch.arange(50), losses)
    t, weights = sampler.sample(50_000, torch.Generator().manual_seed(1))
    assert float((losses[t] * weights).mean()) == pytest.approx(float(losses.mean()), rel=0.01)
    assert float(t.float().mean()) > 30  # the large losses are at the end


def test_second_moment_sampler_is_uniform_until_every_step_has_its_history() -> None:
    sampler = LossSecondMomentSampler(4, history=2)
    sampler.update(torch.tensor([0, 0, 1, 1, 2, 2, 3]), torch.arange(7.0))
    assert torch.equal(sampler.weights(), torch.ones(4, dtype=torch.float64))
    sampler.update(torch.tensor([3]), torch.tensor([9.0]))
    assert not torch.equal(sampler.weights(), torch.ones(4, dtype=torch.float64))


def test_timestep_samplers_resume_where_they_were() -> None:
    sampler = LossSecondMomentSampler(6, history=3)
    generator = torch.Generator().manual_seed(2)
    for _ in range(20):
        sampler.update(torch.randint(6, (4,), generator=generator), torch.rand(4, generator=generator))
    resumed = LossSecondMomentSampler(6, history=3)
    resumed.load_state_dict(sampler.state_dict())
    for one in (sampler, resumed):
        one.update(torch.tensor([1, 1, 5]), torch.tensor([0.1, 0.2, 0.3]))
    assert torch.equal(sampler.weights(), resumed.weights())
    drawn = [one.sample(32, torch.Generator().manual_seed(7))[0] for one in (sampler, resumed)]
    assert torch.equal(*drawn)
    with pytest.raises(CheckpointError, match="timestep sampler"):
        LossSecondMomentSampler(7, history=3).load_state_dict(sampler.state_dict())
    with pytest.raises(CheckpointError, match="timestep sampler"):
        UniformSampler(6).load_state_dict(sampler.state_dict())
