"""How activations and weights of the networks lie in memory."""

from __future__ import annotations

from typing import TypeVar

import torch

from piti.config import ModelConfig
from piti.models.convolution import LEAST_CHANNELS

M = TypeVar("M", bound=torch.nn.Module)


def is_channels_last(config: ModelConfig) -> bool:
    """`config.channels_last`, or where that is None what suits this machine.

    GPUs and CPUs with AVX-512 (or AMX) are faster channels last. With plain AVX2 that is so for networks so wide that
    all their larger convolutions are done by minimal filtering; oneDNN's backward convolutions for AVX2 take 1.2 to
    1.9 times as long channels last as with contiguous planes (docs/performance.md).
    """
    if config.channels_last is not None:
        return config.channels_last
    if torch.cuda.is_available() or torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return True
    return config.model_channels * min(config.channel_mult) >= LEAST_CHANNELS


def laid_out(module: M, config: ModelConfig) -> M:
    """`module` with its weights in the memory format of `is_channels_last`."""
    return module.to(memory_format=torch.channels_last) if is_channels_last(config) else module  # type: ignore[call-overload]
