"""How pictures are brought to the size that a feature network sees. The protocol changes the figures, so each has a name."""

from __future__ import annotations

from typing import Literal, cast, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eval.torchvision_operators import ensure_torchvision_importable

ResizeProtocol = Literal["torch-fidelity", "clean-fid"]
RESIZE_PROTOCOLS: tuple[ResizeProtocol, ...] = get_args(ResizeProtocol)


def resize(pictures: Tensor, side: int, protocol: ResizeProtocol) -> Tensor:
    """uint8 (N,3,H,W) -> float32 (N,3,side,side) in 0..255.

    `torch-fidelity`: bilinear without antialiasing, corners as in TensorFlow 1, which published FIDs are made with.
    `clean-fid`: bicubic with antialiasing by Pillow in float32, clipped (Parmar et al., CVPR 2022); computed on the
    CPU, returned on the pictures' device. Raises ValueError for another name.
    """
    if protocol == "torch-fidelity":
        return _like_tensorflow_1(pictures, side)
    if protocol == "clean-fid":
        return _antialiased_bicubic(pictures, side)
    raise ValueError(f"there is no resize protocol {protocol!r}, only {' and '.join(RESIZE_PROTOCOLS)}")


def _like_tensorflow_1(pictures: Tensor, side: int) -> Tensor:
    ensure_torchvision_importable()
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    return cast(
        Tensor, interpolate_bilinear_2d_like_tensorflow1x(pictures.float(), size=(side, side), align_corners=False)
    )


def _antialiased_bicubic(pictures: Tensor, side: int) -> Tensor:
    channels = pictures.flatten(0, 1).float().cpu().numpy()
    resized = np.stack(
        [np.asarray(Image.fromarray(channel).resize((side, side), Image.Resampling.BICUBIC)) for channel in channels]
    )
    return torch.from_numpy(resized.clip(0, 255)).view(*pictures.shape[:2], side, side).to(pictures.device)
