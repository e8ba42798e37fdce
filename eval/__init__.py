"""Metrics of pictures, and pages that show them. Imports nothing else of this project."""

from eval.efficientnet import EfficientNetDistance, EfficientNetFeatures
from eval.features import FeatureExtractor, Features, features_of
from eval.fid import fid, fid_from_features
from eval.kid import kid, kid_from_features
from eval.lpips import LpipsNetwork, PerceptualNetwork, lpips_distance, lpips_diversity
from eval.pictures import Metric, NetworkIdentity, Pictures, WeightsError
from eval.pixels import pixel_distances
from eval.precision_recall import precision_from_features, recall_from_features
from eval.programs import Program
from eval.published_networks import ClipFeatures, InceptionFeatures, Vgg16Features
from eval.reconstruction import reconstruction_qualities
from eval.scene import depth_order_error, edge_agreement, normal_error_degrees
from eval.segmentation import label_overlaps, mean_iou

__all__ = [
    "ClipFeatures",
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
    "Program",
    "Vgg16Features",
    "WeightsError",
    "depth_order_error",
    "edge_agreement",
    "features_of",
    "fid",
    "fid_from_features",
    "kid",
    "kid_from_features",
    "label_overlaps",
    "lpips_distance",
    "lpips_diversity",
    "mean_iou",
    "normal_error_degrees",
    "pixel_distances",
    "precision_from_features",
    "recall_from_features",
    "reconstruction_qualities",
]
