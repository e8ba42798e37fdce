"""The registry of figures: name, needs, direction, measurement and meaning of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from eval.features import Features
from eval.fid import fid_from_features
from eval.kid import kid_from_features
from eval.pictures import Metric, NetworkIdentity, mean_metric
from eval.precision_recall import precision_from_features, recall_from_features
from eval.segmentation import ObjectSize, mean_iou
from piti.config.evaluation import FigureKind

Need = Literal[
    "inception", "clip", "vgg16", "lpips_trunk", "diversity", "upsampled", "mask", "sketch", "geometry"
]  # fmt: skip
"""What a figure is measured with: a network (or its stand-in), a picture set, or alignment to conditions of a modality."""
FeatureNetwork = Literal["inception", "clip", "vgg16"]
PerceptualTrunk = Literal["lpips_trunk", "vgg16"]


@dataclass(frozen=True)
class Alignment:
    """How pictures agree with their conditions: a row a picture (N, ...), for the generated ones and for the truth.

    `network` is what saw them, None for a detector without weights; `slug` names it.
    """

    generated: NDArray[Any]
    truth: NDArray[Any]
    network: NetworkIdentity | None
    slug: str


class Material(Protocol):
    """The inputs of figures."""

    def features(self, network: FeatureNetwork) -> tuple[Features, Features]:
        """Of the generated pictures and of the truth."""

    def perceptual(
        self, trunk: PerceptualTrunk, kind: Literal["distances", "diversity"]
    ) -> tuple[NDArray[np.float64], NetworkIdentity]:
        """Distance of each generated picture to its truth, or mean distance between those of each condition."""

    def reconstruction(self) -> NDArray[np.float64]:
        """PSNR and SSIM of the upsampler's pictures from true low-resolution ones, (N, 2)."""

    def alignment(self) -> Alignment:
        """To the conditions, of the config's modality."""


@dataclass(frozen=True)
class Figure:
    """A kind of figure.

    Args:
        published: its name where it was measured with the published network; `otherwise` with another.
        better: the direction of improvement.
        unit: empty for a plain number.
        needs: all that has to be there.
        as_in: whose figure it is equal to.
        meaning: what it says, in words.
        measure: None where there is nothing to measure, such as no small object.
    """

    published: str
    otherwise: str
    better: Literal["lower", "higher"]
    unit: str
    needs: tuple[Need, ...]
    as_in: str
    meaning: str
    measure: Callable[[Material], Metric | None]

    def label(self, metric: Metric) -> str:
        """Heading of a metric of this kind: the published name only if it was earned."""
        earned = metric.network is None or metric.network.comparable
        return self.published if earned else self.otherwise


def _perceptual(
    trunk: PerceptualTrunk, kind: Literal["distances", "diversity"], published: str, otherwise: str
) -> Callable[[Material], Metric]:
    def measure(material: Material) -> Metric:
        values, network = material.perceptual(trunk, kind)
        return mean_metric(network.figure(published, otherwise), values, network)

    return measure


def _clip_fid(material: Material) -> Metric:
    generated, truth = material.features("clip")
    return fid_from_features(generated, truth, published="clip_fid")


def _mean_iou(size: ObjectSize) -> Callable[[Material], Metric | None]:
    def measure(material: Material) -> Metric | None:
        found = material.alignment()
        if found.network is None:
            raise ValueError("label maps are compared through a network")
        best = mean_iou(found.truth, size, found.network)
        note = "" if best is None else _of_photographs(best.value)
        return mean_iou(found.generated, size, found.network, note)

    return measure


def _mean_of_column(column: int, name: str) -> Callable[[Material], Metric | None]:
    def measure(material: Material) -> Metric | None:
        found = material.alignment()
        values, best = (rows[:, column][np.isfinite(rows[:, column])] for rows in (found.generated, found.truth))
        if values.size == 0:
            return None
        note = "" if best.size == 0 else _of_photographs(float(best.mean()))
        return mean_metric(f"{name}_{found.slug}", values, found.network, note)

    return measure


def _of_photographs(value: float) -> str:
    return f"the photographs themselves come to {value:.4g}"


FIGURES: dict[FigureKind, Figure] = {
    "fid": Figure(
        "FID", "Fréchet distance", "lower", "", ("inception",), "torch-fidelity, clean-fid (Heusel et al., 2017)",
        "distance between the feature statistics of the generated pictures and of the truth",
        lambda material: fid_from_features(*material.features("inception")),
    ),
    "kid": Figure(
        "KID", "Kernel distance", "lower", "", ("inception",), "torchmetrics, all pictures as one subset (Binkowski et al., 2018)",
        "the same with a polynomial kernel: squared mean discrepancy",
        lambda material: kid_from_features(*material.features("inception")),
    ),
    "clip_fid": Figure(
        "CLIP-FID", "Fréchet distance (CLIP)", "lower", "", ("clip",), "torch-fidelity, clean-fid (Kynkäänniemi et al., 2023)",
        "FID in the features of CLIP, which was not trained on ImageNet's classes",
        _clip_fid,
    ),
    "precision": Figure(
        "Precision", "Precision", "higher", "", ("vgg16",), "torch-fidelity (Kynkäänniemi et al., 2019)",
        "share of generated pictures that lie among the true ones in VGG16's features",
        lambda material: precision_from_features(*material.features("vgg16")),
    ),
    "recall": Figure(
        "Recall", "Recall", "higher", "", ("vgg16",), "torch-fidelity (Kynkäänniemi et al., 2019)",
        "share of true pictures that lie among the generated ones; a collapse shows here",
        lambda material: recall_from_features(*material.features("vgg16")),
    ),
    "lpips": Figure(
        "LPIPS", "Perceptual distance", "lower", "", ("lpips_trunk",), "the lpips package, AlexNet (Zhang et al., 2018)",
        "mean perceptual distance of each generated picture to its ground truth",
        _perceptual("lpips_trunk", "distances", "lpips", "pd"),
    ),
    "lpips_vgg": Figure(
        "LPIPS (VGG)", "Perceptual distance (VGG)", "lower", "", ("vgg16",), "the lpips package, VGG16 (Zhang et al., 2018)",
        "the same through VGG16",
        _perceptual("vgg16", "distances", "lpips_vgg", "pd"),
    ),
    "lpips_diversity": Figure(
        "LPIPS diversity", "Perceptual diversity", "higher", "", ("lpips_trunk", "diversity"), "the lpips package, AlexNet",
        "mean perceptual distance between pictures of one condition",
        _perceptual("lpips_trunk", "diversity", "lpips_diversity", "pd_diversity"),
    ),
    "psnr": Figure(
        "PSNR", "PSNR", "higher", "dB", ("upsampled",), "torchmetrics, mean over pictures",
        "the upsampler alone, from true low-resolution pictures: peak signal-to-noise ratio",
        lambda material: mean_metric("psnr_upsampler", material.reconstruction()[:, 0]),
    ),
    "ssim": Figure(
        "SSIM", "SSIM", "higher", "", ("upsampled",), "torchmetrics, Gaussian window of 11 pixels",
        "the upsampler alone, from true low-resolution pictures: structural similarity",
        lambda material: mean_metric("ssim_upsampler", material.reconstruction()[:, 1]),
    ),
    "miou": Figure(
        "mIoU", "mIoU", "higher", "", ("mask",), "torchmetrics' Jaccard index, macro",
        "agreement of a segmentation network's labels with the label maps: mean over classes of intersection over union",
        _mean_iou("all"),
    ),
    "miou_small": Figure(
        "mIoU, small objects", "mIoU, small objects", "higher", "", ("mask",), "nobody; sizes are COCO's",
        "the same for objects below 0.33 % of the picture (32 x 32 of 640 x 480 pixels)",
        _mean_iou("small"),
    ),
    "miou_medium": Figure(
        "mIoU, medium objects", "mIoU, medium objects", "higher", "", ("mask",), "nobody; sizes are COCO's",
        "the same for objects of 0.33 to 3 % of the picture",
        _mean_iou("medium"),
    ),
    "miou_large": Figure(
        "mIoU, large objects", "mIoU, large objects", "higher", "", ("mask",), "nobody; sizes are COCO's",
        "the same for objects above 3 % of the picture (96 x 96 of 640 x 480 pixels)",
        _mean_iou("large"),
    ),
    "edge_f1": Figure(
        "Edge agreement", "Edge agreement", "higher", "", ("sketch",), "nobody; the tolerance is that of BSDS500",
        "mean F1 of the edges that the conditions' own detector finds in the generated picture, within 0.75 % of the diagonal",
        _mean_of_column(0, "edge_f1"),
    ),
    "depth_order_error": Figure(
        "Depth order error", "Depth order error", "lower", "", ("geometry",), "Chen et al., 2016, with random pairs",
        "mean share of pairs of pixels whose order of depth is wrong; 0.5 is chance",
        _mean_of_column(0, "depth_order_error"),
    ),
    "normal_error": Figure(
        "Normal error", "Normal error", "lower", "degrees", ("geometry",), "the usual mean angular error",
        "mean angle between surface normals that were asked for and those found",
        _mean_of_column(1, "normal_error"),
    ),
}  # fmt: skip
"""By kind. A metric's own name says which network it was measured with: `fid`, or `fd_efficientnet_lite0`."""


def metric_to_json(metric: Metric) -> dict[str, Any]:
    """A metric as JSON-able mapping, without fields that are None."""
    return {key: value for key, value in asdict(metric).items() if value is not None or key in ("low", "high")}


def metric_from_json(value: Mapping[str, Any]) -> Metric:
    """The inverse of `metric_to_json`."""
    network = value.get("network")
    return Metric(**{**value, "network": None if network is None else NetworkIdentity(**network)})
