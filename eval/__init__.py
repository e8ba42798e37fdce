"""Pictures in, numbers and pages out. Knows nothing of the rest of the project."""

from eval.features import FeatureExtractor, InceptionFeatures, UntrainedFeatures
from eval.fid import fid
from eval.kid import kid
from eval.lpips import LpipsNetwork, lpips_distance, lpips_diversity
from eval.pictures import Metric, Pictures, WeightsError
from eval.pixels import pixel_distances

__all__ = [
    "FeatureExtractor",
    "InceptionFeatures",
    "LpipsNetwork",
    "Metric",
    "Pictures",
    "UntrainedFeatures",
    "WeightsError",
    "fid",
    "kid",
    "lpips_distance",
    "lpips_diversity",
    "pixel_distances",
]
