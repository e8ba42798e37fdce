"""Worlds of pictures whose exact network is known in closed form: what x_0 is, on average, given x_t.

A world has `mean_x0(x_t, alpha, sigma)` for x_t = alpha x_0 + sigma noise, and `decisions(pictures)`: which of its
finitely many things each picture consists of, int64 (N, K), none for a Gaussian. Pictures are (N, 3, S, S) in [-1, 1].
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import skimage.data
import torch
from torch import Tensor

from piti.diffusion import GaussianDiffusion

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket", "retina", "hubble_deep_field", "immunohistochemistry")
LEVEL = 1 / 127.5  # one level of 8 bits, where pictures lie in [-1, 1]
BLOCK = 4  # positions across a block of a detail band
DICTIONARY = 256  # blocks that a detail band's blocks are drawn from


class World(Protocol):
    def mean_x0(self, x_t: Tensor, alpha: float, sigma: float) -> Tensor: ...

    def decisions(self, pictures: Tensor) -> Tensor: ...


class ExactNetwork:
    """A world's network as the samplers want it: (x_t, time) -> noise, and a variance output of zeros."""

    def __init__(self, world: World, schedule: str) -> None:
        self._world = world
        self._share = GaussianDiffusion(schedule).coefficients.alphas_cumprod

    def __call__(self, x_t: Tensor, time: Tensor) -> Tensor:
        share = float(self._share[int(time[0])])
        alpha, sigma = share**0.5, (1 - share) ** 0.5
        noise = (x_t - alpha * self._world.mean_x0(x_t, alpha, sigma)) / sigma
        return torch.cat([noise, torch.zeros_like(noise)], dim=1)


class Choice:
    """One of `things` (M, D), all as likely, with Gaussian noise of a `deviation` around it."""

    def __init__(self, things: Tensor, deviation: float) -> None:
        self._things = things
        self._half_squares = 0.5 * things.square().sum(1)
        self._variance = deviation**2

    def mean_x0(self, x_t: Tensor, alpha: float, sigma: float) -> Tensor:
        """(N, D) given x_t (N, D): a softmax over the things, and what the noise around them leaves of x_t."""
        variance = sigma**2 + alpha**2 * self._variance
        log_likelihood = (alpha * x_t @ self._things.T - alpha**2 * self._half_squares) / variance
        centre = torch.softmax(log_likelihood, dim=1) @ self._things
        return centre + alpha * self._variance / variance * (x_t - alpha * centre)

    def nearest(self, vectors: Tensor) -> Tensor:
        """Which thing each of (N, D) is: int64 (N,)."""
        return (vectors @ self._things.T - self._half_squares).argmax(1)


class Photographs:
    """Every picture is one of the crops: a single decision, on which everything hangs."""

    def __init__(self, pictures: Tensor) -> None:
        self._choice = Choice(pictures.flatten(1), 4 * LEVEL)

    def mean_x0(self, x_t: Tensor, alpha: float, sigma: float) -> Tensor:
        return self._choice.mean_x0(x_t.flatten(1), alpha, sigma).view_as(x_t)

    def decisions(self, pictures: Tensor) -> Tensor:
        return self._choice.nearest(pictures.flatten(1))[:, None]


class Pyramid:
    """Decisions at every scale: an orthonormal Haar pyramid of independent choices among real pieces.

    The coarse band is that of one of the crops; each block of BLOCK x BLOCK positions of a level's three detail bands
    is one of DICTIONARY found there. `given`, coarse bands (N, 3, s, s): the coarse band is known, as it is
    to the upsampler. Contrast is lowered, so that few sums of pieces leave [-1, 1].
    """

    _CONTRAST = 0.7

    def __init__(self, pictures: Tensor, levels: int, given: Tensor | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        coarse = pictures * self._CONTRAST
        self._details = []
        for _ in range(levels):
            coarse, detail = haar(coarse)
            blocks = blocks_of(detail)
            chosen = torch.randperm(len(blocks), generator=generator)[:DICTIONARY]
            self._details.append(Choice(blocks[chosen], 2 * LEVEL))
        self._coarse = Choice(coarse.flatten(1), 2 * LEVEL)
        self._given = given

    def mean_x0(self, x_t: Tensor, alpha: float, sigma: float) -> Tensor:
        band, details = x_t, []
        for choice in self._details:
            band, detail = haar(band)
            details.append(unblocked(choice.mean_x0(blocks_of(detail), alpha, sigma), detail))
        known = self._given
        band = self._coarse.mean_x0(band.flatten(1), alpha, sigma).view_as(band) if known is None else known
        for detail in reversed(details):
            band = unhaar(band, detail)
        return band

    def decisions(self, pictures: Tensor) -> Tensor:
        band, found = pictures, []
        for choice in self._details:
            band, detail = haar(band)
            found.append(choice.nearest(blocks_of(detail)).view(len(pictures), -1))
        if self._given is None:
            found.append(self._coarse.nearest(band.flatten(1))[:, None])
        return torch.cat(found, dim=1)


class Spectrum:
    """A Gaussian with the crops' mean and power spectrum: no decisions, correlations at every distance."""

    def __init__(self, pictures: Tensor) -> None:
        self._mean = pictures.mean(0, keepdim=True)
        self._power = torch.fft.fft2(pictures - self._mean, norm="ortho").abs().square().mean(0, keepdim=True)

    def mean_x0(self, x_t: Tensor, alpha: float, sigma: float) -> Tensor:
        gain = alpha * self._power / (alpha**2 * self._power + sigma**2)
        spread = torch.fft.fft2(x_t - alpha * self._mean, norm="ortho")
        return self._mean + torch.fft.ifft2(spread * gain, norm="ortho").real

    def decisions(self, pictures: Tensor) -> Tensor:
        return torch.zeros(len(pictures), 0, dtype=torch.int64)


def haar(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 3, S, S) -> twice the local mean (N, 3, S/2, S/2) and three detail bands (N, 9, S/2, S/2); orthonormal."""
    a, b = pictures[..., 0::2, 0::2], pictures[..., 0::2, 1::2]
    c, d = pictures[..., 1::2, 0::2], pictures[..., 1::2, 1::2]
    return (a + b + c + d) / 2, torch.cat([a - b + c - d, a + b - c - d, a - b - c + d], dim=1) / 2


def unhaar(coarse: Tensor, detail: Tensor) -> Tensor:
    """`haar` undone."""
    across, down, diagonal = detail.chunk(3, dim=1)
    n, channels, height, width = coarse.shape
    whole = coarse.new_empty(n, channels, 2 * height, 2 * width)
    whole[..., 0::2, 0::2] = (coarse + across + down + diagonal) / 2
    whole[..., 0::2, 1::2] = (coarse - across + down - diagonal) / 2
    whole[..., 1::2, 0::2] = (coarse + across - down - diagonal) / 2
    whole[..., 1::2, 1::2] = (coarse - across - down + diagonal) / 2
    return whole


def blocks_of(bands: Tensor) -> Tensor:
    """(N, C, S, S) -> (N * (S/BLOCK)^2, C * BLOCK^2)."""
    n, channels, side, _ = bands.shape
    count = side // BLOCK
    cut = bands.view(n, channels, count, BLOCK, count, BLOCK)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(n * count**2, -1)


def unblocked(blocks: Tensor, like: Tensor) -> Tensor:
    """`blocks_of` undone, in the shape of `like` (N, C, S, S)."""
    n, channels, side, _ = like.shape
    count = side // BLOCK
    return blocks.view(n, count, count, channels, BLOCK, BLOCK).permute(0, 3, 1, 4, 2, 5).reshape(like.shape)


def crops(count: int, side: int) -> Tensor:
    """`count` different crops, float32 (count, 3, side, side) in [-1, 1], spread over the bundled photographs."""
    drawn = np.random.default_rng(0)
    found = []
    photographs = [getattr(skimage.data, name)() for name in PHOTOGRAPHS]
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        stride = int(drawn.integers(1, 1 + min(photograph.shape[:2]) // side))
        room = np.array(photograph.shape[:2]) - stride * side
        top, left = drawn.integers(0, room + 1)
        crop = photograph[top : top + stride * side : stride, left : left + stride * side : stride]
        found.append(torch.from_numpy(crop.astype(np.float32) / 127.5 - 1).permute(2, 0, 1))
    return torch.stack(found)
