"""Pictures in, numbers and pages out. Knows nothing of the rest of the project."""

from eval.efficientnet import EfficientNetDistance, EfficientNetFeatures
from eval.features import FeatureExtractor, Features, InceptionFeatures, features_of
from eval.fid import fid, fid_from_features
from eval.kid import kid, kid_from_features
from eval.lpips import LpipsNetwork, PerceptualNetwork, lpips_distance, lpips_diversity
from eval.pictures import Metric, NetworkIdentity, Pictures, WeightsError
from eval.pixels import pixel_distances

__all__ = [
    "EfficientNetDistance",
    "EfficientNetFeatures",
    "FeatureExtractor",
    "Features",
    "InceptionFeatures",
    "LpipsNetwork",
    "Metric",
    "NetworkIdentity",
    "PerceptualNetwork",
    "Pictures",
    "WeightsError",
    "features_of",
    "fid",
    "fid_from_features",
    "kid",
    "kid_from_features",
    "lpips_distance",
    "lpips_diversity",
    "pixel_distances",
]
