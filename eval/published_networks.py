"""The networks that published FID, CLIP-FID, precision and recall are made with, as torch-fidelity builds them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from eval.pictures import WeightsError
from eval.resize import ResizeProtocol, resize
from eval.torchvision_operators import ensure_torchvision_importable
from eval.weight_files import PublishedWeights, checked_sha256, load_state_dict_file, load_torchscript_file, one_line

# weights-inception-2015-12-05-6726825d.pth of toshas/torch-fidelity, converted from the TensorFlow Inception of FID.
INCEPTION = PublishedWeights("InceptionV3 (FID)", "inception_v3", ("6726825d",))
# ViT-B-32.pt of openai/CLIP, which clean-fid and torch-fidelity make CLIP-FID with.
CLIP = PublishedWeights("CLIP ViT-B/32", "clip_vit_b_32", ("40d365715913c9da",))
# torchvision's vgg16-397923af.pth: precision and recall (Kynkaanniemi et al., 2019), and the trunk of LPIPS (VGG).
VGG16 = PublishedWeights("VGG16", "vgg16", ("397923af",))

_INCEPTION_SIDE_PIXELS = 299
_VGG16_SIDE_PIXELS = 224
_IMAGENET_MEAN, _IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLIP_MEAN, _CLIP_DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class _FidelityFeatures(nn.Module, ABC):
    """A network of torch-fidelity behind a resize by name: uint8 (N,3,H,W) -> float32 (N, number of features).

    Raises WeightsError if the file is missing, damaged, of another layout, or has another hash than `sha256` (None
    accepts any that fits).
    """

    published: PublishedWeights
    layout: str

    def __init__(
        self, path: Path, sha256: str | None = None, resize: ResizeProtocol = "torch-fidelity", device: str = "cpu"
    ) -> None:
        super().__init__()
        ensure_torchvision_importable()
        digest = checked_sha256(path, sha256)
        try:
            network = self._build(path)
        except (RuntimeError, KeyError) as error:
            raise WeightsError(f"{path} is no {self.layout} layout: {one_line(error)}") from error
        self.network = network.to(device).eval().requires_grad_(False)
        self.identity = self.published.identity(digest, resize)
        self._protocol = resize

    @abstractmethod
    def _build(self, path: Path) -> nn.Module:
        """The network that the file holds. Raises RuntimeError or KeyError where it holds another."""

    def _resized(self, pictures: Tensor, side: int) -> Tensor:
        return resize(pictures.to(next(self.network.parameters()).device), side, self._protocol)


class InceptionFeatures(_FidelityFeatures):
    """The 2048 pooled features of the InceptionV3 that FID is defined with; file in torch-fidelity's layout."""

    published = INCEPTION
    layout = "InceptionV3 in torch-fidelity's"

    def _build(self, path: Path) -> nn.Module:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        load_state_dict_file(path)  # refuses a pickle with code in it, which the constructor below would run
        extractor = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path)
        )
        return cast(nn.Module, extractor)

    def forward(self, pictures: Tensor) -> Tensor:
        x = (self._resized(pictures, _INCEPTION_SIDE_PIXELS) - 128) / 128
        for name, layer in self.network.named_children():  # in the order that the package's own `forward` calls them in
            x = layer(x)
            if name == "AvgPool":
                break
        return x.flatten(1)


class ClipFeatures(_FidelityFeatures):
    """The embedding of a picture by CLIP's image encoder; file as OpenAI distributes it, a TorchScript archive."""

    published = CLIP
    layout = "CLIP in OpenAI's"

    def _build(self, path: Path) -> nn.Module:
        from torch_fidelity import feature_extractor_clip

        load_torchscript_file(path)
        extractor = feature_extractor_clip.FeatureExtractorCLIP(
            "clip-vit-b-32", ["clip"], feature_extractor_weights_path=str(path)
        )
        return cast(nn.Module, extractor)

    def forward(self, pictures: Tensor) -> Tensor:
        x = self._resized(pictures, cast(int, self.network.resolution))
        model = cast(nn.Module, self.network.model)
        visual = cast(Callable[[Tensor], Tensor], model.visual)
        return visual(_normalized(x, _CLIP_MEAN, _CLIP_DEVIATION)).float()


class Vgg16Features(_FidelityFeatures):
    """VGG16's second fully connected layer after its ReLU, 4096 values; file in torchvision's layout."""

    published = VGG16
    layout = "VGG16 in torchvision's"

    def _build(self, path: Path) -> nn.Module:
        from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16

        load_state_dict_file(path)
        extractor = FeatureExtractorVGG16("vgg16", ["fc2_relu"], feature_extractor_weights_path=str(path))
        return cast(nn.Module, extractor)

    def forward(self, pictures: Tensor) -> Tensor:
        x = _normalized(self._resized(pictures, _VGG16_SIDE_PIXELS), _IMAGENET_MEAN, _IMAGENET_DEVIATION)
        return cast(Callable[[Tensor], Tensor], self.network.model)(x).relu()


def _normalized(levels: Tensor, mean: Sequence[float], deviation: Sequence[float]) -> Tensor:
    """Levels (N,3,H,W) in 0..255, of which 1 is 255, less the mean of each channel, over its deviation."""
    mean_, deviation_ = (torch.tensor(values, device=levels.device).view(3, 1, 1) * 255 for values in (mean, deviation))
    return (levels - mean_) / deviation_
