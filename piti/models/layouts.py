"""Which kind of weights a state_dict is, judged by its keys and shapes, and which part of a network it fills."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

from torch import Tensor

from piti.models.unet import IMAGE_CHANNELS

# GLIDE's text tower: not needed here, except for transformer_proj, which the class token goes through.
_TEXT_TOWER = ("transformer.", "token_embedding", "positional_embedding", "padding_embedding", "final_ln")
_FIRST = "input_blocks.0.0.weight"
_STEM = "cnn.conv1.weight"


class Kind(Enum):
    """Kinds of weights files; the value is how an error calls them."""

    PITI = "a whole PITI network (encoder and decoder)"
    PITI_ENCODER = "PITI's task encoder alone (its stage 1)"
    GLIDE = "GLIDE's text-to-image network"
    GLIDE_INPAINT = "GLIDE's inpainting network"
    DECODER = "a decoder alone (GLIDE without its text tower)"
    TRAINING_STATE = "an optimizer's or trainer's state"
    UNKNOWN = "none of the known kinds"


@dataclass(frozen=True)
class Layout:
    """What was recognised. `state` has the keys of the `part` of a network that it fills; None: it fills none."""

    kind: Kind
    part: Literal["model", "decoder", "encoder"] | None
    state: dict[str, Tensor]
    sizes: dict[str, Any] = field(default_factory=dict)

    @property
    def description(self) -> str:
        """For a person: the kind, and the sizes that the config has to have."""
        sizes = ", ".join(f"{name} {value}" for name, value in self.sizes.items() if not name.startswith("num_"))
        return f"{self.kind.value} with {sizes}" if sizes else self.kind.value


def identify(content: Any) -> Layout:
    """Recognise the content of a weights file."""
    if not isinstance(content, dict):
        return Layout(Kind.UNKNOWN, None, {})
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        kind = Kind.TRAINING_STATE if {"state", "param_groups"} & content.keys() else Kind.UNKNOWN
        return Layout(kind, None, {})
    state: dict[str, Tensor] = content
    layout = _by_keys(state)
    return Layout(layout.kind, layout.part, layout.state, _sizes(state, layout))


def _by_keys(state: dict[str, Tensor]) -> Layout:
    if any(key.startswith("decoder.") for key in state) and any(key.startswith("encoder.") for key in state):
        return Layout(Kind.PITI, "model", state)
    if _STEM in state:
        return Layout(Kind.PITI_ENCODER, "encoder", state)
    if _FIRST in state and "token_embedding.weight" in state:
        decoder = {key: value for key, value in state.items() if not key.startswith(_TEXT_TOWER)}
        # Inpainting networks take the masked picture and the mask besides: 7 channels, or 10 when upsampling.
        inpaints = state[_FIRST].shape[1] not in (IMAGE_CHANNELS, 2 * IMAGE_CHANNELS)
        return Layout(Kind.GLIDE_INPAINT, None, {}) if inpaints else Layout(Kind.GLIDE, "decoder", decoder)
    if _FIRST in state:
        return Layout(Kind.DECODER, "decoder", state)
    return Layout(Kind.UNKNOWN, None, {})


def _sizes(state: dict[str, Tensor], layout: Layout) -> dict[str, Any]:
    """The sizes that can be read off: for a person who has to write the config."""
    sizes: dict[str, Any] = {
        "num_tensors": len(state),
        "num_parameters": sum(value.numel() for value in state.values()),
    }
    prefix = "decoder." if layout.kind is Kind.PITI else ""
    if (first := state.get(f"{prefix}{_FIRST}")) is not None:
        sizes["super_resolution"] = first.shape[1] == 2 * IMAGE_CHANNELS
    if (time := state.get(f"{prefix}time_embed.0.weight")) is not None:
        sizes["model_channels"] = time.shape[1]
    if (projection := state.get(f"{prefix}transformer_proj.weight")) is not None:
        sizes["encoder_width"] = projection.shape[1]
    prefix = "encoder." if layout.kind is Kind.PITI else ""
    if (stem := state.get(f"{prefix}{_STEM}")) is not None:
        layer_keys = f"{prefix}transformer.resblocks."
        layers = {key.removeprefix(layer_keys).split(".")[0] for key in state if key.startswith(layer_keys)}
        tokens = state[f"{prefix}positional_embedding"].shape[1] - 1
        sizes["condition_channels"] = stem.shape[1]
        sizes["encoder_width"] = 16 * stem.shape[0]
        sizes["encoder_layers"] = len(layers)
        sizes["condition_size"] = 16 * round(tokens**0.5)
    return sizes
