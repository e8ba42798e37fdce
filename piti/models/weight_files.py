"""Weights files: reading one without running code in it, and errors that say why a file is damaged or does not fit."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from piti.checkpoints import Checkpoint, CheckpointFile
from piti.errors import CheckpointError, first_line

_LISTED = 20  # how many offending keys of a sort an error names
_AGAIN = "download or copy it again"
_ARCHIVE, _PICKLE = b"PK\x03\x04", b"\x80"  # first bytes of torch.save's files, since torch 1.6 and before
_IS_FOLDER = 0x10  # in a zip entry's attributes
# Words in torch's refusal of anything but tensors and plain containers. Its other errors mean damage.
_CODE = ("GLOBAL", "Can only create new object", "Can only build", "Trying to call reduce")


def read_weights(path: Path, name: str) -> Any:
    """The content of a `.safetensors` file or a pickle of torch.save, tensors on the CPU.

    `name` is the file's name in errors. Raises CheckpointError for one that is cut short, damaged, not of these formats
    or holds Python code besides tensors and plain containers. This function compares the checksums in an archive of
    torch.save, which torch ignores. Safetensors and torch.save's format before 1.6 have no checksums: only a known
    sha256 reveals a changed number there.
    """
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except Exception as error:  # damaged bytes raise many kinds of errors
            raise _damaged(name, first_line(error)) from error
    with open(path, "rb") as stream:
        beginning = stream.read(4)
    if beginning and not beginning.startswith((_ARCHIVE, _PICKLE)):
        raise CheckpointError(f"{name} is not a file of weights (it begins with {beginning!r})", _AGAIN)
    if beginning == _ARCHIVE:
        _check_archive(path, name)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not any(words in str(error) for words in _CODE):
            # Torch's message is not passed on: it advises loading without this protection.
            raise _damaged(name, "its pickle cannot be read") from error
        doubt = "" if beginning == _ARCHIVE else " (or is damaged)"
        raise CheckpointError(
            f"{name} holds Python objects besides tensors{doubt}, and loading those can run code: refused",
            "save the plain weights, torch.save(model.state_dict(), path), where you trust the file's origin",
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes make the unpickler raise nearly anything
        raise _damaged(name, first_line(error)) from error


def read_checkpoint(checkpoint: Checkpoint, name: str) -> dict[str, Tensor]:
    """The weights in one of a checkpoint's files, together with the weights that the stage does not train. Raises
    CheckpointError."""
    state: dict[str, Tensor] = fetch_weights(checkpoint.file(name))
    frozen = checkpoint.frozen_file()
    return state if frozen is None else {**fetch_weights(frozen), **state}


def fetch_weights(file: CheckpointFile) -> Any:
    """`read_weights` for a URI, local or remote; the file is read from storage once. Raises CheckpointError."""
    with file.fetched() as path:
        return read_weights(path, file.uri)


def check_fit(target: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Raise CheckpointError unless `state` has exactly the keys and shapes of `target`, and finite weights."""
    wanted = {key: tuple(value.shape) for key, value in target.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    shared = {key: value for key, value in state.items() if key in wanted}
    shapes = [
        f"{key} {found[key]} instead of {wanted[key]}" for key in wanted if key in found and found[key] != wanted[key]
    ]
    integers = [f"{key} {value.dtype}" for key, value in shared.items() if not value.is_floating_point()]
    problems = [
        _listing("missing", [key for key in wanted if key not in found]),
        _listing("unexpected", [key for key in found if key not in wanted]),
        _listing("of the wrong shape", shapes),
        _listing("not floating-point numbers", integers),
    ]
    if any(problems):
        raise CheckpointError(
            f"{what} does not fit the configured network: " + "; ".join(problem for problem in problems if problem),
            "set the model's sizes in the config to the checkpoint's (`piti checkpoints inspect` shows those that a "
            "file tells)",
        )
    broken = [key for key, value in shared.items() if not bool(value.isfinite().all())]
    if broken:
        raise CheckpointError(
            f"{what} holds numbers that are not finite: {_listing('tensors', broken)}",
            "its training diverged: take an earlier checkpoint",
        )


def portable(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the tensors for saving: on the CPU, contiguous, sharing no memory."""
    return {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}


def _listing(what: str, entries: list[str]) -> str:
    if not entries:
        return ""
    more = f" and {len(entries) - _LISTED} more" if len(entries) > _LISTED else ""
    return f"{len(entries)} {what} ({', '.join(entries[:_LISTED])}{more})"


def _check_archive(path: Path, name: str) -> None:
    """Raise CheckpointError unless every record of torch.save's archive is plain and matches its checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            # torch.save compresses nothing and makes no folders. Torch would accept a folder as a record of any
            # content.
            odd = [
                entry.filename
                for entry in archive.infolist()
                if entry.compress_type != zipfile.ZIP_STORED or entry.external_attr & _IS_FOLDER
            ]
            wrong = odd[0] if odd else archive.testzip()
    except Exception as error:  # zipfile raises nearly anything for damaged headers
        raise _damaged(name, first_line(error)) from error
    if wrong is not None:
        raise _damaged(name, f"its record {wrong!r} is not what was written")


def _damaged(name: str, why: str) -> CheckpointError:
    return CheckpointError(f"{name} is cut short or damaged ({why})", _AGAIN)
