"""Weights in files: our own checkpoint folders, and loading GLIDE's, PITI's or ours into a network.

Nothing is ever loaded in part: a file either fits the network (or the part it is made for) or is refused with what
is missing, unexpected and of the wrong shape. Pickles are read with `weights_only=True`, so a file cannot run code.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor, nn

from piti import storage
from piti.config import ModelConfig, WeightsRef
from piti.errors import CheckpointError, DataError
from piti.models.layouts import Kind, Layout, identify
from piti.models.memory import laid_out
from piti.models.network import PITIModel
from piti.models.weight_files import read_weights

MODEL_FILE = "model.safetensors"
EMA_FILE = "ema.safetensors"
TRAINER_FILE = "trainer.pt"
FORMAT = 1

Weights = Literal["ema", "model"]
_LISTED = 20  # how many offending keys of a sort an error names


def write_checkpoint(
    folder: Path,
    *,
    model: Mapping[str, Tensor],
    ema: Mapping[str, Tensor],
    trainer: dict[str, Any],
    about: dict[str, Any],
) -> None:
    """Write a checkpoint into a local folder: weights, averaged weights, the trainer's state, and DONE.json last.

    `trainer` may hold tensors, numbers, strings, None and containers of these (what `weights_only` loading takes);
    `about` is JSON. Raises TypeError for anything else. Publish the folder with `storage.publish_folder`.
    """
    _check_plain(trainer, "trainer")
    folder.mkdir(parents=True, exist_ok=True)
    for name, state in ((MODEL_FILE, model), (EMA_FILE, ema)):
        safetensors.torch.save_file(_portable(state), folder / name)
    torch.save(trainer, folder / TRAINER_FILE)
    hashes = {name: storage.sha256_file(str(folder / name)) for name in (MODEL_FILE, EMA_FILE, TRAINER_FILE)}
    storage.write_json(str(folder / storage.MARKER), {**about, "format": FORMAT, "sha256": hashes})


def verify_checkpoint(uri: str) -> dict[str, Any]:
    """Hash every file of a checkpoint folder; its DONE.json. Raises CheckpointError if one is missing or altered."""
    about = _read_about(uri)
    for name in about["sha256"]:
        _verify_file(uri, name, about)
    return about


def load_model(uri: str, config: ModelConfig, weights: Weights = "ema") -> PITIModel:
    """The network of a checkpoint folder, on the CPU in training mode, after checking the weights' hash.

    Raises CheckpointError if the checkpoint is missing, damaged or of another shape than `config`.
    """
    name = EMA_FILE if weights == "ema" else MODEL_FILE
    _verify_file(uri, name, _read_about(uri))
    state = _read(storage.join(uri, name))
    with torch.device("meta"):
        model = PITIModel(config)
    _check_fit(model, state, f"{uri} ({name}; it looks like {identify(state).description})")
    model.load_state_dict(state, strict=True, assign=True)
    return laid_out(model, config)


def load_trainer_state(uri: str) -> dict[str, Any]:
    """What `write_checkpoint` was given as `trainer`, tensors on the CPU. Raises CheckpointError."""
    _verify_file(uri, TRAINER_FILE, _read_about(uri))
    state: dict[str, Any] = _read(storage.join(uri, TRAINER_FILE))
    return state


def load_pretrained(model: PITIModel, ref: WeightsRef) -> dict[str, Any]:
    """Put pretrained weights into `model`: GLIDE's file, PITI's (whole, encoder only, averaged), or ours.

    GLIDE's files fill the decoder (the text tower is dropped, the encoder stays fresh), encoder-only files the
    encoder. `ref.path` is a file, or a checkpoint folder of ours, whose averaged weights are taken. Returns
    {"path", "kind", "loaded": "model"|"decoder"|"encoder", "sha256"}. Raises CheckpointError if the file is
    missing or damaged, if its hash is not `ref.sha256`, or if it does not fit; then `model` is unchanged.
    """
    layout, about = _fitting_layout(model, ref)
    target: nn.Module = {"model": model, "decoder": model.decoder, "encoder": model.encoder}[about["loaded"]]
    target.load_state_dict(layout.state, strict=True)
    return about


def check_pretrained(config: ModelConfig, ref: WeightsRef) -> None:
    """Raise CheckpointError where `load_pretrained` would for a network of this config: for preflight."""
    with torch.device("meta"):
        model = PITIModel(config)
    _fitting_layout(model, ref)


def inspect_checkpoint(path: str) -> dict[str, Any]:
    """What a weights file or checkpoint folder is: kind, sizes, sha256. Raises CheckpointError if unreadable."""
    path = _weights_path(path)
    if not storage.exists(path):
        raise CheckpointError(f"there are no weights at {path}", "correct the path")
    layout: Layout = identify(_read(path))
    return {
        "path": path,
        "kind": layout.kind.name.lower(),
        "looks_like": layout.kind.value,
        "sha256": storage.sha256_file(path),
        **layout.sizes,
    }


def export_piti(model: PITIModel, path: str) -> None:
    """Write `model` as PITI's own code loads it: one pickled state_dict, published whole at `path` (a URI)."""
    with tempfile.TemporaryDirectory() as folder:
        aside = Path(folder) / f"{uuid.uuid4().hex}.pt"
        torch.save(_portable(model.state_dict()), aside)
        storage.publish_file(aside, path)


def _fitting_layout(model: PITIModel, ref: WeightsRef) -> tuple[Layout, dict[str, Any]]:
    """Weights that fit `model` or its part, and what `load_pretrained` says about them. Raises as it does."""
    path = _weights_path(ref.path)
    if not storage.exists(path):
        raise CheckpointError(f"there are no weights at {path}", "download them, or correct the path in the config")
    digest = storage.sha256_file(path)
    if ref.sha256 is not None and digest != ref.sha256:
        raise CheckpointError(
            f"{path} has sha256 {digest}, the config pins {ref.sha256}", "download it again, or correct the pin"
        )
    layout = identify(_read(path))
    if layout.part is None:
        raise CheckpointError(
            f"{path} cannot be loaded: it looks like {layout.description}",
            "give GLIDE's base.pt or upsample.pt, a PITI checkpoint, or one of ours",
        )
    target: nn.Module = {"model": model, "decoder": model.decoder, "encoder": model.encoder}[layout.part]
    _check_fit(target, layout.state, f"{path} (it looks like {layout.description})")
    return layout, {"path": path, "kind": layout.kind.name.lower(), "loaded": layout.part, "sha256": digest}


def _weights_path(path: str) -> str:
    """A checkpoint folder stands for its averaged weights. Raises CheckpointError if these are not as written."""
    if not storage.exists(storage.join(path, storage.MARKER)):
        return path
    _verify_file(path, EMA_FILE, _read_about(path))
    return storage.join(path, EMA_FILE)


def _read(uri: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return read_weights(storage.fetch(uri, Path(folder) / storage.name(uri)), uri)


def _read_about(uri: str) -> dict[str, Any]:
    marker = storage.join(uri, storage.MARKER)
    if not storage.exists(marker):
        raise CheckpointError(f"{uri} is not a finished checkpoint: it has no {storage.MARKER}", "give another one")
    try:
        about: dict[str, Any] = storage.read_json(marker)
    except DataError as error:
        raise CheckpointError(f"{marker} is damaged ({error.problem})", "take another checkpoint") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT or not isinstance(about.get("sha256"), dict):
        raise CheckpointError(f"{marker} is not that of a checkpoint in format {FORMAT}", "give another checkpoint")
    return about


def _verify_file(uri: str, name: str, about: dict[str, Any]) -> None:
    path = storage.join(uri, name)
    if not storage.exists(path):
        raise CheckpointError(f"{path} is missing", "take another checkpoint, or train this one again")
    if storage.sha256_file(path) != about["sha256"].get(name):
        raise CheckpointError(
            f"{path} is not what was written (its sha256 differs)", "take another checkpoint, or train this one again"
        )


def _check_fit(target: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Raise CheckpointError unless `state` has exactly the keys and shapes of `target`, and weights of any precision."""
    wanted = {key: tuple(value.shape) for key, value in target.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    shapes = [
        f"{key} {found[key]} instead of {wanted[key]}" for key in wanted if key in found and found[key] != wanted[key]
    ]
    problems = [
        _listing("missing", [key for key in wanted if key not in found]),
        _listing("unexpected", [key for key in found if key not in wanted]),
        _listing("of the wrong shape", shapes),
        _listing(
            "not floating-point numbers",
            [f"{k} {v.dtype}" for k, v in state.items() if k in wanted and not v.is_floating_point()],
        ),
    ]
    if any(problems):
        raise CheckpointError(
            f"{what} does not fit the configured network: " + "; ".join(problem for problem in problems if problem),
            "set the model's sizes in the config to the checkpoint's (`piti checkpoints inspect` shows those that a "
            "file tells)",
        )


def _listing(what: str, entries: list[str]) -> str:
    if not entries:
        return ""
    more = f" and {len(entries) - _LISTED} more" if len(entries) > _LISTED else ""
    return f"{len(entries)} {what} ({', '.join(entries[:_LISTED])}{more})"


def _portable(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share no memory, on the CPU and in plain order, whatever memory format they were trained in."""
    return {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}


def _check_plain(value: Any, where: str) -> None:
    if value is None or isinstance(value, Tensor | str | int | float | bool):
        return
    if isinstance(value, Mapping):
        for key, entry in value.items():
            _check_plain(key, f"a key of {where}")
            _check_plain(entry, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            _check_plain(entry, f"{where}[{index}]")
    else:
        raise TypeError(f"{where} is a {type(value).__name__}, which could not be loaded again")


__all__ = [
    "Kind",
    "check_pretrained",
    "export_piti",
    "inspect_checkpoint",
    "load_model",
    "load_pretrained",
    "load_trainer_state",
    "verify_checkpoint",
    "write_checkpoint",
]
