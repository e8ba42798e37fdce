"""Sketches as the published model saw them: HED's edge probabilities, binarised.

Holistically-nested edge detection (Xie and Tu, ICCV 2015) in the form that PITI's preprocess_sketch.py uses, sniklaus'
pytorch-hed: five stages of VGG16, a 1x1 score from each, enlarged and combined. Weights: network-bsds500.pytorch.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from piti.config import SketchConfig, WeightsRef
from piti.data.resizing import resize_nearest
from piti.errors import CheckpointError
from piti.models.weight_files import read_weights
from piti.weights import open_weights

_KEY, _ORIGIN = "data.sketch.weights", "network-bsds500.pytorch"
_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_STAGE_NAMES = ("One", "Two", "Thr", "Fou", "Fiv")  # of the published file's keys: moduleVggOne.0.weight, ...
_MEAN_BGR = (104.00698793, 116.66876762, 122.67891434)
_LONGEST_SIDE_PIXELS = 1024  # larger pictures are shrunk to this first: 20 megapixels would need 10 GB


class Hed(nn.Module):
    """Edge probabilities. `forward`: float32 (N, 3, H, W), BGR in 0..255 -> (N, 1, H, W) in 0..1."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        channels = 3
        for number, widths in enumerate(_WIDTHS):
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if number else []
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            self.stages.append(nn.Sequential(*layers))
        self.scores = nn.ModuleList(nn.Conv2d(widths[-1], 1, 1) for widths in _WIDTHS)
        self.combine = nn.Sequential(nn.Conv2d(len(_WIDTHS), 1, 1), nn.Sigmoid())

    def forward(self, pictures: Tensor) -> Tensor:
        features = pictures - torch.tensor(_MEAN_BGR, device=pictures.device).view(1, 3, 1, 1)
        sides = []
        for stage, score in zip(self.stages, self.scores, strict=True):
            features = stage(features)
            sides.append(F.interpolate(score(features), size=pictures.shape[2:], mode="bilinear", align_corners=False))
        combined: Tensor = self.combine(torch.cat(sides, dim=1))
        return combined


def load_hed(ref: WeightsRef) -> Hed:
    """The network with published weights, whole or not at all.

    Raises CheckpointError where the file is missing, damaged, has another sha256, or holds other weights.
    """
    network = Hed().eval().requires_grad_(False)
    found = _read(ref)
    wanted = network.state_dict()
    missing, unexpected = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    wrong = [key for key in wanted.keys() & found.keys() if wanted[key].shape != found[key].shape]
    if missing or unexpected or wrong:
        parts = (("missing", missing), ("unexpected", unexpected), ("of another shape", sorted(wrong)))
        listed = "; ".join(f"{what}: {', '.join(keys[:3])}" for what, keys in parts if keys)
        raise CheckpointError(f"{ref.path} are not HED's weights ({listed})", f"use {_ORIGIN}")
    network.load_state_dict(found)
    return network


def hed_edges(image: NDArray[np.uint8], sketch: SketchConfig) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) RGB -> edges uint8 (H, W): 255 where HED's probability is above `sketch.threshold`, else 0.

    Raises CheckpointError as `load_hed` does.
    """
    if sketch.weights is None:
        raise ValueError("HED needs weights")
    height, width = image.shape[:2]
    share = min(1.0, _LONGEST_SIDE_PIXELS / max(height, width))
    if share < 1.0:
        size = (max(1, round(width * share)), max(1, round(height * share)))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pixels = torch.from_numpy(np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1))).float()[None]
    with torch.inference_mode():
        probability = _network(sketch.weights, device)(pixels.to(device))[0, 0].cpu().numpy()
    edges = np.where(probability > sketch.threshold, np.uint8(255), np.uint8(0))
    return resize_nearest(edges, height, width)


def hed_record(sketch: SketchConfig) -> dict[str, Any]:
    """The detector and its settings, as each sample's JSON holds them. Raises CheckpointError where weights are missing."""
    if sketch.weights is None:
        raise ValueError("HED needs weights")
    return {
        "name": "hed", "threshold": sketch.threshold, "weights_sha256": _sha256(sketch.weights),
        "longest_side_pixels": _LONGEST_SIDE_PIXELS,
    }  # fmt: skip


@lru_cache(maxsize=2)
def _network(ref: WeightsRef, device: torch.device) -> Hed:
    return load_hed(ref).to(device)


@lru_cache(maxsize=2)
def _sha256(ref: WeightsRef) -> str:
    with open_weights(ref, _KEY, _ORIGIN) as file:
        return file.sha256


def _read(ref: WeightsRef) -> dict[str, Tensor]:
    """The file's tensors under this module's names."""
    with open_weights(ref, _KEY, _ORIGIN) as file:
        content = read_weights(file.path, ref.path)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{ref.path} is no mapping of tensors", f"use {_ORIGIN}")
    return {_own_name(str(key)): value for key, value in content.items()}


def _own_name(key: str) -> str:
    """`moduleVggTwo.3.bias` (the published file) or `netVggTwo.3.bias` (a saved network) -> `stages.1.3.bias`."""
    plain = key.removeprefix("module").removeprefix("net")
    for number, name in enumerate(_STAGE_NAMES):
        for part, own in (("Vgg", "stages"), ("Score", "scores")):
            if plain.startswith(f"{part}{name}."):
                return f"{own}.{number}.{plain.partition('.')[2]}"
    return plain.replace("Combine.", "combine.", 1)
