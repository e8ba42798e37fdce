"""The upsampler's critic: judges overlapping patches, real against predicted (equation 5)."""

from __future__ import annotations

from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """PatchGAN with instance norm (Isola et al., CVPR 2017), named and shaped as in PITI's adv.py.

    `channels` of the first layer double with each further one, up to 8 times; `layers` of stride 2.
    """

    def __init__(self, channels: int = 64, layers: int = 3) -> None:
        super().__init__()
        stack: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = channels
        for index in range(1, layers + 1):
            widened = channels * min(2**index, 8)
            stride = 2 if index < layers else 1
            stack += [
                nn.Conv2d(width, widened, 4, stride=stride, padding=1),
                nn.InstanceNorm2d(widened),
                nn.LeakyReLU(0.2),
            ]
            width = widened
        stack.append(nn.Conv2d(width, 1, 4, padding=1))
        self.model = nn.Sequential(*stack)

    def forward(self, images: Tensor) -> Tensor:
        """images (N, 3, H, W) in [-1, 1] -> scores (N, 1, h, w), higher for real; h about H / 2^layers."""
        scores: Tensor = self.model(images)
        return scores
