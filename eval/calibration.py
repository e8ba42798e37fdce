"""Data-dependent initialisation, for perceptual networks whose trained weights cannot be had.

He's initialisation keeps the size of signals but centres none of them: all features of a picture share one large
common part, and a flat grey picture has no features at all, so that it is "farther" from a photograph than white
noise is. Scaling each channel to mean 0 and deviation 1 over real photographs, layer after layer, mends that
(Kraehenbuehl et al., "Data-dependent Initializations of Convolutional Neural Networks", ICLR 2016, equation 4; the
LPIPS paper measures networks initialised by the same authors' method as its "unsupervised" baseline).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_PHOTOGRAPHS = ("astronaut", "cat", "coffee", "immunohistochemistry")
_REDUCED_SIDE_PIXELS = 256
_PATCH_PIXELS = 128
_SIGNIFICANT_DIGITS = 5


def calibration_photographs() -> Tensor:
    """Patches of photographs that come with scikit-image: uint8 (16, 3, 128, 128), the same on every machine.

    Each of four is reduced to a short side of 256 pixels and its middle square cut in four. All are stored without
    loss, so that no decoder's rounding gets into weights.
    """
    from skimage import data

    return torch.cat([_patches(getattr(data, name)()) for name in _PHOTOGRAPHS])


def standardize_on(inputs: Tensor, layers: Iterable[nn.Module]) -> None:
    """Scale and shift each convolution so that its output has mean 0 and deviation 1 per channel on `inputs`.

    Args:
        inputs: float64 (N, C, H, W), what the first layer is given.
        layers: all layers of a network, in the order they follow each other; convolutions need a bias. They are
            changed in place. Factors are rounded to 5 significant digits, so that weights do not hang on the order
            in which a machine adds.
    """
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                before = _in_double(layer, inputs)
                channels = before.transpose(0, 1).flatten(1)
                scale = _rounded(1 / channels.std(dim=1))
                shift = _rounded(-channels.mean(dim=1) * scale)
                layer.weight.mul_(scale.to(layer.weight.dtype).view(-1, 1, 1, 1))
                cast(Tensor, layer.bias).copy_(shift + scale * cast(Tensor, layer.bias).double())
                inputs = _in_double(layer, inputs)
            else:
                inputs = layer(inputs)


def _in_double(layer: nn.Conv2d, inputs: Tensor) -> Tensor:
    bias = cast(Tensor, layer.bias).double()
    return F.conv2d(inputs, layer.weight.double(), bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def _rounded(values: Tensor) -> Tensor:
    return torch.tensor([float(f"{value:.{_SIGNIFICANT_DIGITS}g}") for value in values.tolist()], dtype=torch.float64)


def _patches(photograph: np.ndarray) -> Tensor:
    """uint8 (H, W, 3) -> uint8 (4, 3, 128, 128)."""
    picture = torch.from_numpy(photograph[..., :3].astype(np.float64)).permute(2, 0, 1)
    shortest = min(picture.shape[1:])
    height, width = (round(side * _REDUCED_SIDE_PIXELS / shortest) for side in picture.shape[1:])
    reduced = F.adaptive_avg_pool2d(picture, (height, width)).round().to(torch.uint8)
    top, left = (height - _REDUCED_SIDE_PIXELS) // 2, (width - _REDUCED_SIDE_PIXELS) // 2
    square = reduced[:, top : top + _REDUCED_SIDE_PIXELS, left : left + _REDUCED_SIDE_PIXELS]
    rows = square.unfold(1, _PATCH_PIXELS, _PATCH_PIXELS).unfold(2, _PATCH_PIXELS, _PATCH_PIXELS)
    return rows.permute(1, 2, 0, 3, 4).reshape(-1, 3, _PATCH_PIXELS, _PATCH_PIXELS).contiguous()
