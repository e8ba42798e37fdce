"""Networks of the user's own, stored whole with their code: TorchScript archives, or torch.export's .pt2 files."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from eval.pictures import NetworkIdentity, WeightsError
from eval.weight_files import checked_sha256, load_torchscript_file, one_line

InputLevels = Literal["imagenet", "unit", "signed", "levels"]
"""What the network wants of a picture: ImageNet's normalisation, 0..1, -1..1, or 0..255."""

_IMAGENET_MEAN, _IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Program:
    """A network in a file. A program is code, so it is opened only if its sha256 is the one expected.

    Args:
        path: `*.pt2` as torch.export.save writes it, anything else as torch.jit.save does. The batch's size must be free.
        side: pixels to which pictures are resized (bilinear, antialiased); None: their own size.
        levels: what the network wants of a picture.
    Raises WeightsError if the file is missing, no program, or has another hash.
    """

    def __init__(
        self, path: Path, sha256: str, levels: InputLevels = "imagenet", side: int | None = None, device: str = "cpu"
    ) -> None:
        checked_sha256(path, sha256)
        self._program = _opened(path, device)
        self._levels, self._side, self._device = levels, side, device
        resized = "none" if side is None else f"bilinear with antialiasing to {side}x{side}"
        self.identity = NetworkIdentity(path.name, sha256[:8], sha256, False, resized)

    def __call__(self, pictures: Tensor) -> Tensor:
        """uint8 (N,3,H,W) -> what the network gives, a tensor whose first dimension is N. Raises WeightsError otherwise."""
        x = pictures.to(self._device).float()
        if self._side is not None:
            x = F.interpolate(x, (self._side, self._side), mode="bilinear", antialias=True, align_corners=False)
        try:
            with torch.inference_mode():
                output = self._program(self._scaled(x))
        except (RuntimeError, AssertionError, TypeError) as error:
            raise WeightsError(
                f"{self.identity.name} does not run on pictures {tuple(x.shape)}: {one_line(error)}"
            ) from error
        if not isinstance(output, Tensor) or output.shape[:1] != x.shape[:1]:
            raise WeightsError(f"{self.identity.name} does not give one tensor with a row a picture")
        return output

    def _scaled(self, levels: Tensor) -> Tensor:
        if self._levels == "levels":
            return levels
        if self._levels == "signed":
            return levels / 127.5 - 1
        unit = levels / 255
        if self._levels == "unit":
            return unit
        mean, deviation = (
            torch.tensor(values, device=levels.device).view(3, 1, 1) for values in (_IMAGENET_MEAN, _IMAGENET_DEVIATION)
        )
        return (unit - mean) / deviation


def _opened(path: Path, device: str) -> Callable[[Tensor], object]:
    if path.suffix != ".pt2":
        return cast(Callable[[Tensor], object], load_torchscript_file(path).to(device))
    if not zipfile.is_zipfile(path):
        raise WeightsError(f"{path} is not a readable file of torch.export: it is no archive")
    try:
        module = torch.export.load(path).module()
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise WeightsError(f"{path} is not a readable file of torch.export: {one_line(error)}") from error
    return cast(Callable[[Tensor], object], module.to(device))
