"""Reading a file of tensors without running anything in it, and saying plainly what is wrong with a bad one."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from piti.errors import CheckpointError

_AGAIN = "download or copy it again"
_ARCHIVE, _PICKLE = b"PK\x03\x04", b"\x80"  # how torch.save's files begin, today's and those before 1.6


def read_weights(path: Path, name: str) -> Any:
    """The content of a `.safetensors` file or a pickle of torch.save, tensors on the CPU.

    `name` is how errors call the file. Raises CheckpointError for one that is cut short, is not of these formats or
    holds Python code besides tensors and plain containers.
    """
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{name} is cut short or damaged ({error})", _AGAIN) from error
    with open(path, "rb") as stream:
        beginning = stream.read(4)
    if beginning and not beginning.startswith((_ARCHIVE, _PICKLE)):
        raise CheckpointError(f"{name} is not a file of weights (it begins with {beginning!r})", _AGAIN)
    if beginning == _ARCHIVE and not zipfile.is_zipfile(path):
        raise CheckpointError(f"{name} is cut short or damaged (the end of its archive is missing)", _AGAIN)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "truncated" in str(error):
            raise CheckpointError(f"{name} is cut short or damaged (pickle data was truncated)", _AGAIN) from error
        raise CheckpointError(
            f"{name} holds Python objects besides tensors, and loading those can run code: refused",
            "save the plain weights, torch.save(model.state_dict(), path), where you trust the file's origin",
        ) from error
    except (EOFError, RuntimeError) as error:
        raise CheckpointError(f"{name} is cut short or damaged ({_first_line(error)})", _AGAIN) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
