"""The networks are the published ones: same keys and shapes, same numbers (golden vectors, see golden/README.md)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from piti.models import ModelConfig, PITIModel, build_model

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 1e-5  # of each value, float32
FLOOR = 5e-6  # what may be added to a value's tolerance; outputs reach 2.5
LARGEST_TOLERANCE = 2e-5  # of the largest value, float32, where activations lie channels last
Maker = Callable[[str, tuple[int, ...]], Tensor]

REDUCED = {"model_channels": 32, "num_head_channels": 32}
CONFIGS = {
    "base": ModelConfig.base().model_copy(update=REDUCED),
    "upsampler": ModelConfig.upsampler(condition_channels=1).model_copy(update=REDUCED),
    "full-base": ModelConfig.base(),
}


def assert_close(ours: Tensor, golden: str, channels_last: bool) -> None:
    published = np.load(GOLDEN / golden)
    assert tuple(ours.shape) == published.shape
    difference = np.abs(ours.double().numpy() - published.astype(np.float64))
    values = np.abs(published.astype(np.float64))
    allowed = LARGEST_TOLERANCE * values.max() if channels_last else TOLERANCE * values + FLOOR
    assert (difference <= allowed).all(), f"{golden}: {difference.max()}"


@pytest.mark.parametrize("size", ["base", "upsampler"])
def test_keys_and_shapes_are_those_of_the_published_files(size: str) -> None:
    published = json.loads((GOLDEN / "state-dict.json").read_text())[size]
    with torch.device("meta"):
        model = PITIModel(getattr(ModelConfig, size)())
    keys = sorted((key, list(value.shape)) for key, value in model.state_dict().items())
    assert sum(parameter.numel() for parameter in model.parameters()) == published["num_parameters"]
    assert len(keys) == published["num_tensors"]
    assert hashlib.sha256(json.dumps(keys).encode()).hexdigest() == published["sha256"]


@pytest.mark.parametrize(
    ("name", "channels_last"),
    [
        ("base", True),
        ("base", False),
        ("upsampler", True),
        ("upsampler", False),
        pytest.param("full-base", False, marks=pytest.mark.slow),
    ],
)
def test_numbers_are_those_of_the_published_code(
    name: str, channels_last: bool, uniform: Maker, normal: Maker, filled: Callable[[nn.Module], nn.Module]
) -> None:
    config = CONFIGS[name]
    with torch.device("meta"):
        model = PITIModel(config)
    model = model.to_empty(device="cpu")
    model.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)  # type: ignore[call-overload]
    filled(model).eval()
    side = config.image_size
    condition = uniform("condition", (1, config.condition_channels, 256, 256)).float()
    low_res = uniform("low_res", (1, 3, 64, 64)).float() if config.super_resolution else None
    with torch.no_grad():
        latent = model.encode(condition)
        output = model(normal("x_t", (1, 3, side, side)).float(), torch.tensor([437]), latent=latent, low_res=low_res)
    stride = 8 if config.super_resolution else 4
    assert_close(output[:, :, ::stride, ::stride], f"{name}-output.npy", channels_last)
    wide = output.double()
    sums = torch.stack([wide.mean((0, 2, 3)), wide.std((0, 2, 3), correction=0)])
    assert_close(sums, f"{name}-sums.npy", channels_last)
    if name != "full-base":
        assert_close(latent.tokens[0, ::16, ::16], f"{name}-tokens.npy", channels_last)
        assert_close(latent.summary[0], f"{name}-summary.npy", channels_last)


def test_published_sizes() -> None:
    """The counts that the published files are known by: 338.0 M with 29.3 M in the encoder, 351.3 M."""
    with torch.device("meta"):
        base, upsampler = PITIModel(ModelConfig.base()), PITIModel(ModelConfig.upsampler())
    millions = [
        sum(parameter.numel() for parameter in part.parameters()) / 1e6 for part in (base, base.encoder, upsampler)
    ]
    assert [round(value, 1) for value in millions] == [338.0, 29.3, 351.3]


def test_a_fresh_decoder_predicts_zero_noise() -> None:
    """As published: whatever the weights drawn, the last convolution begins at zero."""
    config = CONFIGS["base"].model_copy(update={"image_size": 16, "attention_resolutions": (8,), "encoder_layers": 1})
    model = build_model(config, seed=3)
    with torch.no_grad():
        assert torch.equal(model(torch.randn(1, 3, 16, 16), torch.tensor([5.0])), torch.zeros(1, 6, 16, 16))
