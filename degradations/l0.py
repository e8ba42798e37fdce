"""L0 smoothing, which flattens texture and keeps the strongest edges.

Xu, Lu, Xu, Jia, "Image Smoothing via L0 Gradient Minimization", SIGGRAPH Asia 2011, in the form that PITI publishes
(pretrained_diffusion/degradation/l0smooth.py): half-quadratic splitting, circular boundaries, beta from 2 lambda in
steps of kappa while it is below 1e5. Real FFTs in float32: picture by picture on CPUs
(`degradations.l0_planes`), as a batch on other devices.

Departures from the published function: the result is rounded and clipped to [0, 255] (published: truncated, and a value
outside wraps around), and grey pictures are accepted and treated as pictures with three equal channels.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    Images = TypeVar("Images", NDArray[np.uint8], torch.Tensor)

BETA_MAX = 1e5
FULL_SCALE = 256.0  # the published code maps 0..255 to [0, 1) by dividing by 256; lambda is relative to that


def l0_smooth(images: Images, lam: float, kappa: float = 2.0) -> Images:
    """Smooth pictures: uint8 (H, W), (H, W, C) or (N, H, W, C), C 1 or 3, RGB; same type, shape and device back.

    `lam` is the smoothing weight (published range 0.0012 to 0.004; larger is flatter), `kappa` > 1 the factor by which
    beta grows. numpy arrays are computed on one core, CPU tensors on torch.get_num_threads() cores with the same
    pixels, other tensors as one batch on their device, within one level of these pixels with rare exceptions. Raises
    TypeError for anything but uint8, ValueError for another shape or a lam or kappa outside its range.
    """
    _check(images, lam, kappa)
    batch: Any = images.reshape(_batch_shape(tuple(images.shape)))
    if isinstance(images, np.ndarray):
        return np.stack([_smooth_uint8(picture, lam, kappa) for picture in batch]).reshape(images.shape)
    smooth = _smooth_on_cpu if images.device.type == "cpu" else smooth_batch
    return smooth(batch, lam, kappa).reshape(images.shape)


def _check(images: Any, lam: float, kappa: float) -> None:
    torch_module = sys.modules.get("torch")  # a torch tensor cannot exist without its module
    is_tensor = torch_module is not None and isinstance(images, torch_module.Tensor)
    if not is_tensor and not isinstance(images, np.ndarray):
        raise TypeError(f"images are {type(images).__name__}; give a numpy array or a torch tensor of uint8")
    if str(images.dtype).removeprefix("torch.") != "uint8":
        raise TypeError(f"images are {images.dtype}; give uint8 with values 0 to 255")
    if not 0 < lam < BETA_MAX / 2:
        raise ValueError(
            f"lam is {lam}; it must be positive and below {BETA_MAX / 2:g} (published range 0.0012 to 0.004)"
        )
    if not kappa > 1:
        raise ValueError(f"kappa is {kappa}; it must be above 1, otherwise beta would never grow")


def _batch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) == 2:
        shape = (*shape, 1)
    if len(shape) == 3:
        shape = (1, *shape)
    if len(shape) != 4 or shape[-1] not in (1, 3) or 0 in shape:
        raise ValueError(f"images have shape {shape}; give (H, W), (H, W, C) or (N, H, W, C) with C 1 or 3, none empty")
    return shape


def _betas(lam: float, kappa: float) -> list[float]:
    betas = [2 * lam]
    while betas[-1] * kappa < BETA_MAX:
        betas.append(betas[-1] * kappa)
    return betas


def _smooth_uint8(picture: NDArray[np.uint8], lam: float, kappa: float) -> NDArray[np.uint8]:
    smoothed = _smooth_picture(picture, 1 / FULL_SCALE, lam, kappa)
    return np.clip(np.rint(smoothed), 0, 255).astype(np.uint8)


def smooth_float(image: NDArray[np.float32], lam: float, kappa: float = 2.0) -> NDArray[np.float32]:
    """L0 smoothing of one float32 picture (H, W, 3) with values in [0, 1], without rounding; same shape back."""
    return _smooth_picture(image, 255 / FULL_SCALE, lam, kappa)


def _smooth_picture(picture: NDArray[Any], to_planes: float, lam: float, kappa: float) -> NDArray[np.float32]:
    from degradations.l0_planes import smooth_planes  # brings numba, which takes a second to import

    planes = np.multiply(np.moveaxis(picture, -1, 0), np.float32(to_planes), dtype=np.float32, order="C")
    smoothed = smooth_planes(planes, _betas(lam, kappa), lam)
    restored: NDArray[np.float32] = np.divide(np.moveaxis(smoothed, 0, -1), np.float32(to_planes), order="C")
    return restored


def _laplacian(height: int, width: int) -> NDArray[np.float32]:
    """Squared modulus of the transfer function of the two forward differences, (H, W // 2 + 1)."""
    rows = 2 - 2 * np.cos(2 * np.pi * np.arange(height) / height)
    columns = 2 - 2 * np.cos(2 * np.pi * np.arange(width // 2 + 1) / width)
    eigenvalues: NDArray[np.float64] = rows[:, None] + columns
    return eigenvalues.astype(np.float32)


def _smooth_on_cpu(batch: torch.Tensor, lam: float, kappa: float) -> torch.Tensor:
    import torch  # only callers with a tensor at hand come here

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # the compiled loops and OpenCV let go of the GIL
        pictures = threads.map(lambda picture: _smooth_uint8(picture, lam, kappa), batch.numpy())
        return torch.from_numpy(np.stack(list(pictures)))


def smooth_batch(batch: torch.Tensor, lam: float, kappa: float) -> torch.Tensor:
    """L0 smoothing of a uint8 tensor (N, H, W, C), C 1 or 3, as one batch with torch's FFTs on the tensor's device."""
    import torch  # only callers with a tensor at hand come here

    planes = batch.permute(0, 3, 1, 2).float() / FULL_SCALE
    channels, height, width = planes.shape[-3:]
    laplacian = torch.from_numpy(_laplacian(height, width)).to(planes.device)
    smoothed = planes
    for beta in _betas(lam, kappa):
        right = smoothed.roll(-1, 3).sub_(smoothed)
        down = smoothed.roll(-1, 2).sub_(smoothed)
        energy = right.square().addcmul_(down, down).sum(1, keepdim=True)
        weight = (energy >= lam / beta * channels / 3) * beta
        right.mul_(weight)
        down.mul_(weight)
        target = right.roll(1, 3).sub_(right).add_(down.roll(1, 2)).sub_(down).add_(planes)
        spectrum = torch.fft.rfft2(target).div_(1 + beta * laplacian)
        smoothed = torch.fft.irfft2(spectrum, s=(height, width))
    return (smoothed * FULL_SCALE).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
