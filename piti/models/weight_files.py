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
    if _is_cut_archive(path):
        raise CheckpointError(f"{name} is cut short or damaged (the end of its archive is missing)", _AGAIN)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "truncated" in str(error):
            raise CheckpointError(f"{name} is cut short or damaged (pickle data was truncated)", _AGAIN) from error
        if "Unsupported" in str(error) or "GLOBAL" in str(error) or "global" in str(error):
            raise CheckpointError(
                f"{name} holds Python objects besides tensors, and loading those can run code: refused",
                "save the plain weights, torch.save(model.state_dict(), path), where you trust the file's origin",
            ) from error
        raise CheckpointError(f"{name} is not a file of weights (no pickle that torch.save wrote)", _AGAIN) from error
    except (EOFError, RuntimeError) as error:
        raise CheckpointError(f"{name} is cut short or damaged ({_first_line(error)})", _AGAIN) from error


def _is_cut_archive(path: Path) -> bool:
    """Whether it begins as the zip archive that torch.save writes but lacks the directory at its end."""
    with open(path, "rb") as stream:
        return stream.read(4) == b"PK\x03\x04" and not zipfile.is_zipfile(path)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
