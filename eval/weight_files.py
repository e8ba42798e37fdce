"""Weights files: hashed, read without running code in them, and known by their hash as the published ones or not."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from eval.pictures import NetworkIdentity, WeightsError

_LONGEST_LINE = 300


@dataclass(frozen=True)
class PublishedWeights:
    """A network whose figures compare with published ones only if its file is the published one.

    Args:
        name, slug: as in `NetworkIdentity`.
        sha256_prefixes: beginnings of the sha256 of the files that count as published; file names carry them.
    """

    name: str
    slug: str
    sha256_prefixes: tuple[str, ...]

    def identity(self, digest: str, resize: str) -> NetworkIdentity:
        """What the network with a file of this sha256 is called."""
        if digest.startswith(self.sha256_prefixes):
            return NetworkIdentity(self.name, self.slug, digest, True, resize)
        name = f"{self.name} with weights other than the published"
        return NetworkIdentity(name, f"{self.slug}_{digest[:8]}", digest, False, resize)


def checked_sha256(path: Path, expected: str | None) -> str:
    """Hex sha256 of a file. Raises WeightsError if it is missing or has another hash than expected."""
    try:
        with open(path, "rb") as stream:
            actual = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"weights file {path} cannot be read ({error.strerror})") from error
    if expected is not None and actual != expected:
        raise WeightsError(f"{path} has sha256 {actual}, expected {expected}")
    return actual


def load_state_dict_file(path: Path) -> dict[str, Tensor]:
    """Read a file of named tensors, never running code from it. Raises WeightsError if it is not one."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # other bytes make the unpickler raise nearly anything
        raise WeightsError(f"{path} is not a readable file of weights: {one_line(error)}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} does not hold a plain mapping of names to tensors")
    return cast(dict[str, Tensor], state)


def load_torchscript_file(path: Path) -> torch.jit.ScriptModule:
    """Read a TorchScript archive, on the CPU. Raises WeightsError if it is not one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit's, on every call
            return cast(torch.jit.ScriptModule, torch.jit.load(str(path), map_location="cpu"))  # type: ignore[no-untyped-call]
    except MemoryError:
        raise
    except Exception as error:
        raise WeightsError(f"{path} is not a readable file of TorchScript: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    """An exception's text on one line of bounded length."""
    text = " ".join(str(error).split())
    return text if len(text) <= _LONGEST_LINE else text[: _LONGEST_LINE - 1] + "…"
