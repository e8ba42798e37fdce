"""Writing and loading the weights and the trainer's state in a checkpoint folder (see `piti.checkpoints`).

Weights that do not fit raise CheckpointError, which lists missing, unexpected and misshapen ones. Pickles are read with
`weights_only=True`, so a file cannot run code.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor

from piti import storage
from piti.checkpoints import (
    EMA_FILE,
    FORMAT,
    MODEL_FILE,
    TRAINER_FILE,
    Checkpoint,
    aside_of,
    checkpoints_of,
    set_aside,
)
from piti.config import ModelConfig
from piti.errors import CheckpointError
from piti.models.encoder import laid_out
from piti.models.network import PITIModel
from piti.models.pretrained import identify
from piti.models.weight_files import check_fit, fetch_weights, portable, read_checkpoint

Weights = Literal["ema", "model"]

logger = logging.getLogger("piti")


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
    `about` is JSON-able. If `model` and `ema` hold only the trained weights, `about["frozen"]` must be the result of
    `publish_frozen`. Raises TypeError for anything else. Publish the folder with `storage.publish_folder`.
    """
    _check_plain(trainer, "trainer")
    folder.mkdir(parents=True, exist_ok=True)
    for name, state in ((MODEL_FILE, model), (EMA_FILE, ema)):
        safetensors.torch.save_file(portable(state), folder / name)
    torch.save(trainer, folder / TRAINER_FILE)
    hashes = {name: storage.sha256_file(str(folder / name)) for name in (MODEL_FILE, EMA_FILE, TRAINER_FILE)}
    storage.write_json(str(folder / storage.MARKER), {**about, "format": FORMAT, "sha256": hashes})


def load_model(uri: str, config: ModelConfig, weights: Weights = "ema") -> PITIModel:
    """The network of a checkpoint folder, on the CPU in training mode, after checking the weights' hash.

    Raises CheckpointError if the checkpoint is missing, damaged or of another shape than `config`.
    """
    state = read_checkpoint(Checkpoint.at(uri), EMA_FILE if weights == "ema" else MODEL_FILE)
    return model_of(config, state, f"{uri} ({weights} weights; it looks like {identify(state).description})")


def model_of(config: ModelConfig, state: Mapping[str, Tensor], what: str) -> PITIModel:
    """A network in training mode that holds `state`. Raises CheckpointError, which calls it `what`, if it does not fit."""
    model = model_around(config, state, what)
    for parameter in model.parameters():  # where one lies in memory, as in a mapped file, changes how products round
        parameter.data = parameter.data.clone()
    return model


def model_around(config: ModelConfig, state: Mapping[str, Tensor], what: str | None = None) -> PITIModel:
    """As `model_of`, but with the very tensors of `state`, where their order in memory allows it. `what` None: unchecked."""
    with torch.device("meta"):
        model = PITIModel(config)
    if what is not None:
        check_fit(model, state, what)
    model.load_state_dict(state, strict=True, assign=True)
    return laid_out(model)


def load_trainer_state(uri: str) -> dict[str, Any]:
    """What `write_checkpoint` was given as `trainer`, tensors on the CPU. Raises CheckpointError."""
    state: dict[str, Any] = fetch_weights(Checkpoint.at(uri).file(TRAINER_FILE))
    return state


def read_newest(run: str, store_frozen: Callable[[], object]) -> dict[str, Any] | None:
    """Everything in the newest whole checkpoint of a run, each file read once; None where there is none.

    {"uri", "model", "ema", "trainer", "frozen"}: `ema` without the weights that do not learn, `frozen` as
    `Checkpoint.frozen`. Damaged checkpoints are reported and set aside, so that they count neither as the run's progress
    nor among those that are kept; not before a second look, once storage answers and `store_frozen` has stored anew the
    weights that do not learn.
    """
    for uri in reversed(checkpoints_of(run)):
        try:
            return _read_whole(uri)
        except CheckpointError as error:
            logger.warning("looking a second time: %s", error)
        storage.wait_until_there(run)
        try:
            if Checkpoint.at(uri).frozen is not None:
                store_frozen()
            return _read_whole(uri)
        except CheckpointError as error:
            logger.warning("set a damaged checkpoint aside: %s", error)
            set_aside(uri)
    return None


def _read_whole(uri: str) -> dict[str, Any]:
    checkpoint = Checkpoint.at(uri)
    return {
        "uri": uri,
        "model": read_checkpoint(checkpoint, MODEL_FILE),
        "ema": fetch_weights(checkpoint.file(EMA_FILE)),
        "trainer": load_trainer_state(uri),
        "frozen": checkpoint.frozen,
    }


def publish_frozen(state: Mapping[str, Tensor], run: str) -> dict[str, str]:
    """Store the weights that a run does not train, named by their hash, unless they are stored already.

    Returns {"file", "sha256"} for the DONE.json of the run's checkpoints.
    """
    with aside_of(run) as aside:
        path = aside / "frozen.safetensors"
        safetensors.torch.save_file(portable(state), path)
        digest = storage.sha256_file(str(path))
        name = f"frozen-{digest[:16]}.safetensors"
        uri = storage.join(run, name)
        if not storage.exists(uri) or storage.sha256_file(uri) != digest:
            storage.publish_file(path, uri)
    return {"file": name, "sha256": digest}


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
