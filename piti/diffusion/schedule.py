"""Noise schedules, respacing, and the coefficients that follow from them, in float64.

Names, formulas and rounding are those of openai/glide-text2im (gaussian_diffusion.py, respace.py), so that published
models get the same timesteps and coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from piti.errors import ConfigError

Array = npt.NDArray[np.float64]

_MAX_BETA = 0.999  # keeps the cosine schedule away from its singularity at the end
_FAST27_SECTIONS = (10, 10, 3, 2, 2)
# Below this, the last three steps of the cosine schedule lose as much signal as the hundred before them.
_LOWEST_HALF_LOG_SNR = -5.1


def betas_of(schedule: str, steps: int) -> Array:
    """The variances b_t of equation 1, shape (steps,).

    `linear` runs from 1e-4 to 0.02 when there are 1000 steps (scaled by 1000 / steps otherwise);
    `squaredcos_cap_v2` is the cosine schedule of Nichol and Dhariwal, 2021. Raises ConfigError for other names, and
    for a linear schedule of so few steps that a variance would exceed 1.
    """
    if schedule == "linear":
        scale = 1000 / steps
        if scale * 0.02 > 1:
            raise ConfigError(f"a linear schedule of {steps} steps has variances above 1", "use at least 20 steps")
        return np.linspace(scale * 0.0001, scale * 0.02, steps, dtype=np.float64)
    if schedule == "squaredcos_cap_v2":

        def share_of_signal(time: float) -> float:
            return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

        return np.array(
            [min(1 - share_of_signal((i + 1) / steps) / share_of_signal(i / steps), _MAX_BETA) for i in range(steps)]
        )
    raise ConfigError(f"unknown noise schedule {schedule!r}", "use linear or squaredcos_cap_v2")


def respaced_timesteps(betas: Array, respacing: str | Sequence[int] | None) -> list[int]:
    """The timesteps, ascending, that a shorter process keeps of the process with variances `betas`.

    `None` keeps all; "250" (or [250]) spreads that many evenly, both ends included; "10,10,3,2,2" splits the process
    into equal sections and spreads each count over its section; "ddim50" uses the smallest whole stride that gives
    exactly 50; "fast27" is GLIDE's for upsampling: 10,10,3,2,2 with the noisiest step moved two down; "logsnr25"
    spreads 25 evenly in the logarithm of the signal-to-noise ratio, which suits `dpm++` and `unipc` far better than
    even times (no published counterpart). Raises ConfigError for anything else and for counts that do not fit.
    """
    steps = len(betas)
    if respacing is None:
        return list(range(steps))
    if respacing == "fast27":
        kept = set(_spread(steps, _FAST27_SECTIONS))
        return sorted(kept - {steps - 1} | {steps - 3})
    if isinstance(respacing, str) and respacing.startswith("ddim"):
        return _strided(steps, _count_after("ddim", respacing))
    if isinstance(respacing, str) and respacing.startswith("logsnr"):
        return _even_in_log_snr(betas, _count_after("logsnr", respacing))
    if isinstance(respacing, str):
        try:
            respacing = [int(count) for count in respacing.split(",")]
        except ValueError:
            raise ConfigError(
                f"cannot read the respacing {respacing!r}",
                "give a number of steps, a list like 10,10,3,2,2, ddimN, logsnrN or fast27",
            ) from None
    return sorted(set(_spread(steps, respacing)))


def _count_after(word: str, respacing: str) -> int:
    try:
        return int(respacing.removeprefix(word))
    except ValueError:
        remedy = f"write {word} and a number, like {word}50"
        raise ConfigError(f"cannot read the respacing {respacing!r}", remedy) from None


def _even_in_log_snr(betas: Array, wanted: int) -> list[int]:
    """The least noisy step and `wanted` - 1 more at even distances of log(alpha / sigma), not below -5.1."""
    if not 2 <= wanted <= len(betas):
        raise ConfigError(f"cannot take {wanted} of {len(betas)} steps", f"choose 2 to {len(betas)} for logsnrN")
    signal = np.cumprod(1.0 - betas)
    half_log_snr = 0.5 * np.log(signal / (1.0 - signal))
    targets = np.linspace(half_log_snr[0], max(half_log_snr[-1], _LOWEST_HALF_LOG_SNR), wanted)
    kept = [int(np.abs(half_log_snr - target).argmin()) for target in targets]
    # Near t=0 several targets fall on one step: move them to the next free step, and back from the end.
    for index in range(1, wanted):
        kept[index] = max(kept[index], kept[index - 1] + 1)
    for index in reversed(range(wanted)):
        kept[index] = min(kept[index], len(betas) - wanted + index)
    return kept


def _strided(steps: int, wanted: int) -> list[int]:
    """Every k-th step from 0, with the smallest k that takes exactly `wanted`."""
    for stride in range(1, steps):
        kept = range(0, steps, stride)
        if len(kept) == wanted:
            return list(kept)
    raise ConfigError(f"no whole stride takes exactly {wanted} of {steps} steps", "choose another N for ddimN")


def _spread(steps: int, counts: Sequence[int]) -> list[int]:
    """`counts[i]` timesteps from the i-th of equal sections; the first `steps % len(counts)` sections have one step
    more."""
    if not counts or min(counts) < 1:
        raise ConfigError(f"each section of a respacing needs at least one step, got {list(counts)}", "raise the count")
    size_per, longer = divmod(steps, len(counts))
    kept: list[int] = []
    start = 0
    for index, count in enumerate(counts):
        size = size_per + (1 if index < longer else 0)
        if size < count:
            raise ConfigError(f"a section of {size} steps cannot give {count}", "ask for fewer steps or sections")
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        position = 0.0  # summed, not multiplied, for the same rounding as in published samplers
        for _ in range(count):
            kept.append(start + round(position))
            position += stride
        start += size
    return kept


@dataclass(frozen=True)
class Coefficients:
    """Coefficients derived from the variances, each (steps,) float64. `alphas_cumprod` is a_t of equation 2."""

    betas: Array
    alphas_cumprod: Array
    alphas_cumprod_prev: Array
    sqrt_alphas_cumprod: Array
    sqrt_one_minus_alphas_cumprod: Array
    sqrt_recip_alphas_cumprod: Array
    sqrt_recipm1_alphas_cumprod: Array
    posterior_variance: Array
    posterior_log_variance_clipped: Array
    posterior_mean_coef1: Array
    posterior_mean_coef2: Array
    log_betas: Array

    @classmethod
    def of(cls, betas: Array) -> Coefficients:
        """The coefficients of the process with these variances; the posterior is q(x_{t-1} | x_t, x_0)."""
        alphas_cumprod: Array = np.cumprod(1.0 - betas, dtype=np.float64)
        previous = np.append(1.0, alphas_cumprod[:-1])
        posterior_variance = betas * (1.0 - previous) / (1.0 - alphas_cumprod)
        # The variance is zero at the first step; its logarithm takes the second step's value there, if there is one.
        clipped = np.append(posterior_variance[1], posterior_variance[1:]) if len(betas) > 1 else betas
        return cls(
            betas=betas,
            alphas_cumprod=alphas_cumprod,
            alphas_cumprod_prev=previous,
            sqrt_alphas_cumprod=np.sqrt(alphas_cumprod),
            sqrt_one_minus_alphas_cumprod=np.sqrt(1.0 - alphas_cumprod),
            sqrt_recip_alphas_cumprod=np.sqrt(1.0 / alphas_cumprod),
            sqrt_recipm1_alphas_cumprod=np.sqrt(1.0 / alphas_cumprod - 1),
            posterior_variance=posterior_variance,
            posterior_log_variance_clipped=np.log(clipped),
            posterior_mean_coef1=betas * np.sqrt(previous) / (1.0 - alphas_cumprod),
            posterior_mean_coef2=(1.0 - previous) * np.sqrt(1.0 - betas) / (1.0 - alphas_cumprod),
            log_betas=np.log(betas),
        )


def respaced_betas(betas: Array, timesteps: Sequence[int]) -> Array:
    """The variances of the process that keeps only `timesteps`, with the original a_t at these steps."""
    kept = np.cumprod(1.0 - betas)[list(timesteps)]
    shorter: Array = 1.0 - kept / np.append(1.0, kept[:-1])
    return shorter
