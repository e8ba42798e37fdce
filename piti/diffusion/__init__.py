"""The diffusion process: schedules, losses, guidance and samplers. Knows nothing of the networks.

Names are imported at first use, so that a flow can check a respacing (`piti.diffusion.schedule`) without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from piti.diffusion.gaussian import GaussianDiffusion, Prediction
    from piti.diffusion.guidance import guide, guided
    from piti.diffusion.noise import PictureNoise
    from piti.diffusion.samplers import quantize_8bit
    from piti.diffusion.timesteps import LossSecondMomentSampler, TimestepSampler, UniformSampler

__all__ = [
    "GaussianDiffusion",
    "LossSecondMomentSampler",
    "PictureNoise",
    "Prediction",
    "TimestepSampler",
    "UniformSampler",
    "guide",
    "guided",
    "quantize_8bit",
]

_HOMES = {
    "gaussian": ("GaussianDiffusion", "Prediction"),
    "guidance": ("guide", "guided"),
    "noise": ("PictureNoise",),
    "samplers": ("quantize_8bit",),
    "timesteps": ("LossSecondMomentSampler", "TimestepSampler", "UniformSampler"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"piti.diffusion.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
