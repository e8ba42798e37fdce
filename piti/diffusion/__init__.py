"""The diffusion process: schedules, losses, guidance and samplers. Knows nothing of the networks."""

from piti.diffusion.gaussian import GaussianDiffusion
from piti.diffusion.guidance import guided
from piti.diffusion.samplers import PictureNoise, Prediction, quantize_8bit
from piti.diffusion.timesteps import LossSecondMomentSampler, TimestepSampler, UniformSampler

__all__ = [
    "GaussianDiffusion",
    "LossSecondMomentSampler",
    "PictureNoise",
    "Prediction",
    "TimestepSampler",
    "UniformSampler",
    "guided",
    "quantize_8bit",
]
