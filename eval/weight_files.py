"""Weights files: hashed, and read without running code in them."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from eval.pictures import WeightsError


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
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{path} is not a readable file of weights: {one_line(error)}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} does not hold a plain mapping of names to tensors")
    return cast(dict[str, Tensor], state)


def one_line(error: Exception, limit: int = 300) -> str:
    """An exception's text on one line of bounded length."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
