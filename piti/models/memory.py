"""How activations and weights of the networks lie in memory."""

from __future__ import annotations

from typing import TypeVar

import torch

from piti.config import ModelConfig

M = TypeVar("M", bound=torch.nn.Module)


def is_channels_last(config: ModelConfig) -> bool:
    """`config.channels_last`, or where that is None what suits this machine.

    GPUs and CPUs with AVX-512 (or AMX) are faster channels last. oneDNN's backward convolutions for plain AVX2 are
    not: a training step takes 1.2 to 1.9 times as long as with contiguous planes (docs/performance.md).
    """
    if config.channels_last is not None:
        return config.channels_last
    return torch.cuda.is_available() or torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def laid_out(module: M, config: ModelConfig) -> M:
    """`module` with its weights in the memory format of `is_channels_last`."""
    return module.to(memory_format=torch.channels_last) if is_channels_last(config) else module  # type: ignore[call-overload]
