"""Pretrained weights: recognising the kind of a file by its keys and shapes, and loading it into a network.

GLIDE's files, PITI's (whole, encoder alone, averaged or not) and ours are recognised. A file must fit the network, or
the part of the network that its kind fills; otherwise CheckpointError lists missing, unexpected and misshapen weights.
"""

from __future__ import annotations

import tempfile
import uuid
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from piti import storage
from piti.checkpoints import EMA_FILE, Checkpoint
from piti.config import ENCODER_STRIDE, Config, ModelConfig, WeightsRef
from piti.errors import CheckpointError, PitiError
from piti.models.network import PITIModel
from piti.models.unet import IMAGE_CHANNELS
from piti.models.weight_files import check_fit, portable, read_checkpoint, read_weights
from piti.weights import file_problems, open_weights

# GLIDE's text tower: not needed here, except for transformer_proj, which the class token goes through.
_TEXT_TOWER = ("transformer.", "token_embedding", "positional_embedding", "padding_embedding", "final_ln")
_FIRST = "input_blocks.0.0.weight"
_STEM = "cnn.conv1.weight"
_BLOCK_IN = "in_layers.0.weight"  # of a residual block, within its entry of the U-Net
_BLOCK_OUT = "0.out_layers.3.weight"
_PREFIXES = ("module._orig_mod.", "module.", "_orig_mod.", "model.")


class Kind(Enum):
    """Kinds of weights files; the value is the kind's name in errors."""

    PITI = "a whole PITI network (encoder and decoder)"
    PITI_ENCODER = "PITI's task encoder alone (its stage 1)"
    GLIDE = "GLIDE's text-to-image network"
    GLIDE_INPAINT = "GLIDE's inpainting network"
    DECODER = "a decoder alone (GLIDE without its text tower)"
    WRAPPED = "weights inside a larger mapping"
    PREFIXED = "weights whose names all have a prefix, as those of a network saved within DataParallel or torch.compile"
    TRAINING_STATE = "an optimizer's or trainer's state"
    UNKNOWN = "none of the known kinds"


_REMEDIES = {
    Kind.WRAPPED: "save the mapping under that key alone with torch.save",
    Kind.PREFIXED: "save the weights under names without the prefix",
}


@dataclass(frozen=True)
class Recognised:
    """A recognised file. `state` has the keys of the `part` of a network that the file fills; `part` None: it fills
    none."""

    kind: Kind
    part: Literal["model", "decoder", "encoder"] | None
    state: dict[str, Tensor]
    sizes: dict[str, Any] = field(default_factory=dict)

    @property
    def description(self) -> str:
        """The kind and the sizes, in words for errors."""
        counts = ("num_tensors", "num_parameters")
        sizes = ", ".join(f"{name} {_plain(value)}" for name, value in self.sizes.items() if name not in counts)
        return f"{self.kind.value} with {sizes}" if sizes else self.kind.value


def _plain(value: Any) -> str:
    return f"({', '.join(str(entry) for entry in value)})" if isinstance(value, list) else str(value)


def identify(content: Any) -> Recognised:
    """Recognise the kind and the sizes of a weights file's content."""
    if not isinstance(content, dict):
        return Recognised(Kind.UNKNOWN, None, {})
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        inside = [str(key) for key, value in content.items() if identify(value).part is not None]
        if inside:
            return Recognised(Kind.WRAPPED, None, {}, {"key": inside[0]})
        kind = Kind.TRAINING_STATE if {"state", "param_groups"} & content.keys() else Kind.UNKNOWN
        return Recognised(kind, None, {})
    state: dict[str, Tensor] = content
    for prefix in _PREFIXES:
        bare = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if bare and len(bare) == len(state) and _by_keys(bare).part is not None:
            return Recognised(Kind.PREFIXED, None, {}, {"prefix": prefix})
    found = _by_keys(state)
    return replace(found, sizes=_sizes(state, found))


def _by_keys(state: dict[str, Tensor]) -> Recognised:
    if any(key.startswith(("decoder.input_blocks.", "encoder.cnn.")) for key in state):
        return Recognised(Kind.PITI, "model", state)
    if any(key.startswith("cnn.") for key in state):
        return Recognised(Kind.PITI_ENCODER, "encoder", state)
    if not any(key.startswith("input_blocks.") for key in state):
        return Recognised(Kind.UNKNOWN, None, {})
    if not any(key.startswith(_TEXT_TOWER) for key in state):
        return Recognised(Kind.DECODER, "decoder", state)
    # Inpainting networks take the masked picture and the mask besides: 7 channels, or 10 when upsampling.
    if _side(state, _FIRST, 1) in (2 * IMAGE_CHANNELS + 1, 3 * IMAGE_CHANNELS + 1):
        return Recognised(Kind.GLIDE_INPAINT, None, {})
    return Recognised(Kind.GLIDE, "decoder", {k: v for k, v in state.items() if not k.startswith(_TEXT_TOWER)})


def _sizes(state: dict[str, Tensor], found: Recognised) -> dict[str, Any]:
    """The model sizes that follow from the weights' shapes. A size whose keys are missing is left out.

    `image_size` and the numbers of attention heads do not follow from shapes.
    """
    whole = found.kind is Kind.PITI
    sizes = _decoder_sizes(state, "decoder." if whole else "") | _encoder_sizes(state, "encoder." if whole else "")
    return {
        "num_tensors": len(state),
        "num_parameters": sum(value.numel() for value in state.values()),
        **{name: value for name, value in sizes.items() if value is not None},
    }


def _decoder_sizes(state: dict[str, Tensor], prefix: str) -> dict[str, Any]:
    inputs = _side(state, f"{prefix}{_FIRST}", 1)
    sizes: dict[str, Any] = {
        "super_resolution": None if inputs is None else inputs == 2 * IMAGE_CHANNELS,
        "model_channels": _side(state, f"{prefix}time_embed.0.weight", 1),
        "encoder_width": _side(state, f"{prefix}transformer_proj.weight", 1),
    }
    return sizes | _levels(state, f"{prefix}output_blocks.", sizes["model_channels"])


def _levels(state: dict[str, Tensor], prefix: str, model_channels: int | None) -> dict[str, Any]:
    """Multipliers, residual blocks and attention of each level, from `output_blocks`, where the last block of a level
    enlarges.

    In `input_blocks` a block that halves looks like one that keeps its width.
    """
    blocks: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        number, _, rest = key.removeprefix(prefix).partition(".")
        if key.startswith(prefix) and number.isdecimal():
            blocks.setdefault(int(number), {})[rest] = value
    widths = [_side(blocks.get(number, {}), _BLOCK_OUT, 0) for number in range(len(blocks))]
    enlarging = [n for n, block in blocks.items() if any(f"{place}.{_BLOCK_IN}" in block for place in (1, 2))]
    num_levels = len(enlarging) + 1
    per_level = len(blocks) // num_levels
    lasts = [per_level * (level + 1) - 1 for level in range(num_levels)]  # from the smallest maps to the largest
    if not model_channels or per_level < 2 or sorted(enlarging) != lasts[:-1] or len(blocks) != lasts[-1] + 1:
        return {}
    of_levels = [widths[last] for last in reversed(lasts)]
    if any(width is None or width % model_channels for width in of_levels):
        return {}
    attending = [level for level, last in enumerate(reversed(lasts)) if "1.qkv.weight" in blocks[last]]
    return {
        "channel_mult": [width // model_channels for width in of_levels if width is not None],
        "num_res_blocks": per_level - 1,
        "attention_resolutions": [f"image_size / {2**level}" if level else "image_size" for level in attending],
    }


def _encoder_sizes(state: dict[str, Tensor], prefix: str) -> dict[str, Any]:
    width = _side(state, f"{prefix}{_STEM}", 0)
    if width is None:
        return {}
    layer_keys = f"{prefix}transformer.resblocks."
    positions = _side(state, f"{prefix}positional_embedding", 1)
    return {
        "condition_channels": _side(state, f"{prefix}{_STEM}", 1),
        "encoder_width": ENCODER_STRIDE * width,
        "encoder_layers": len(
            {key.removeprefix(layer_keys).split(".")[0] for key in state if key.startswith(layer_keys)}
        ),
        "condition_size": None if not positions else ENCODER_STRIDE * round((positions - 1) ** 0.5),
    }


def _side(state: dict[str, Tensor], key: str, dimension: int) -> int | None:
    """One side of a tensor's shape; None where there is no such tensor, or it has fewer dimensions."""
    value = state.get(key)
    return None if value is None or value.ndim <= dimension else value.shape[dimension]


def load_pretrained(model: PITIModel, ref: WeightsRef, key: str = "pretrained") -> dict[str, Any]:
    """Put pretrained weights into `model`: GLIDE's file, PITI's (whole, encoder only, averaged), or ours.

    GLIDE's files fill the decoder (the text tower is dropped, the encoder stays fresh), encoder-only files the encoder.
    `ref.path` is a file, or a checkpoint folder of ours, whose averaged weights are taken; `key` is its name in errors.
    Returns {"path", "kind", "loaded": "model"|"decoder"|"encoder", "sha256"}. Raises CheckpointError if the file is
    missing or damaged, if its hash is not `ref.sha256`, or if it does not fit; then `model` is unchanged.
    """
    found, about = _fitting_weights(model, ref, key)
    _part(model, about["loaded"]).load_state_dict(found.state, strict=True)
    return about


def check_pretrained(config: ModelConfig, ref: WeightsRef, key: str) -> None:
    """Raise the CheckpointError that `load_pretrained` would raise for a network of this config; load nothing."""
    with torch.device("meta"):
        model = PITIModel(config)
    _fitting_weights(model, ref, key)


def pretrained_problems(config: Config) -> list[PitiError]:
    """Problems of the config's pretrained weights, for preflight.

    Files on this machine are read. Of remote files only existence and hash are checked; the stage that downloads them
    checks the rest.
    """
    problems: list[PitiError] = []
    for network, ref in (("base", config.pretrained.base), ("upsampler", config.pretrained.upsampler)):
        if ref is None:
            continue
        key = f"pretrained.{network}"
        if not storage.is_local(ref.path) and not storage.exists(storage.join(ref.path, storage.MARKER)):
            problems.extend(file_problems(key, ref))
            continue
        try:
            check_pretrained(getattr(config.models, network), ref, key)
        except CheckpointError as problem:
            problems.append(problem)
    return problems


def inspect_checkpoint(path: str) -> dict[str, Any]:
    """Kind, sizes and sha256 of a weights file or checkpoint folder. Raises CheckpointError if unreadable."""
    found, uri, sha256 = _read(WeightsRef(path=path), "inspect")
    about = {"kind": found.kind.name.lower(), "looks_like": found.kind.value, "sha256": sha256}
    return {"path": uri, **about, **found.sizes}


def export_piti(model: PITIModel, path: str) -> None:
    """Write `model` to the URI `path` in the format of PITI's own code: one pickled state_dict."""
    with tempfile.TemporaryDirectory() as folder:
        aside = Path(folder) / f"{uuid.uuid4().hex}.pt"
        torch.save(portable(model.state_dict()), aside)
        storage.publish_file(aside, path)


def _fitting_weights(model: PITIModel, ref: WeightsRef, key: str) -> tuple[Recognised, dict[str, Any]]:
    """Weights that fit `model` or its part, and what `load_pretrained` says about them. Raises as it does."""
    found, uri, sha256 = _read(ref, key)
    if found.part is None:
        raise CheckpointError(
            f"{key}: {uri} cannot be loaded: it looks like {found.description}",
            _REMEDIES.get(found.kind, "give GLIDE's base.pt or upsample.pt, a PITI checkpoint, or one of ours"),
        )
    check_fit(_part(model, found.part), found.state, f"{key}: {uri} (it looks like {found.description})")
    return found, {"path": uri, "kind": found.kind.name.lower(), "loaded": found.part, "sha256": sha256}


def _read(ref: WeightsRef, key: str) -> tuple[Recognised, str, str]:
    """The content, URI and sha256 of a weights file; of a checkpoint folder of ours, its averaged weights."""
    if not storage.exists(storage.join(ref.path, storage.MARKER)):
        with open_weights(ref, key) as file:
            return identify(read_weights(file.path, f"{key}: {file.uri}")), file.uri, file.sha256
    checkpoint = Checkpoint.at(ref.path)
    uri, found = storage.join(ref.path, EMA_FILE), checkpoint.sha256.get(EMA_FILE, "")
    if ref.sha256 is not None and found != ref.sha256:
        raise CheckpointError(f"{key}: {uri} has sha256 {found}, the config pins {ref.sha256}", "correct the pin")
    return identify(read_checkpoint(checkpoint, EMA_FILE)), uri, found


def _part(model: PITIModel, name: str) -> nn.Module:
    parts: dict[str, nn.Module] = {"model": model, "decoder": model.decoder, "encoder": model.encoder}
    return parts[name]
