"""What helps small networks to read a condition: attention that falls off with distance, an encoder that keeps colour."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from piti.models import ModelConfig, build_model
from piti.models.unet import AttentionBlock

SMALL = ModelConfig(
    image_size=16, model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(8,),
    num_head_channels=32, dropout=0.0, condition_size=64, encoder_width=64, encoder_layers=1, encoder_heads=4,
)  # fmt: skip


def test_no_option_changes_names_or_shapes_of_weights() -> None:
    published = build_model(SMALL, seed=0).state_dict()
    helped = build_model(
        SMALL.model_copy(update={"attention_reach": 0.1, "encoder_norm": "layer", "norm_groups": 4}), seed=0
    )
    assert {key: value.shape for key, value in helped.state_dict().items()} == {
        key: value.shape for key, value in published.items()
    }


@pytest.mark.parametrize(("groups", "lost"), [(32, True), (4, False)])
def test_a_norm_of_single_channels_loses_their_brightness(groups: Literal[4, 32], lost: bool) -> None:
    """Features that differ by a constant in every other channel, seen through the decoder's last norm."""
    norm = build_model(SMALL.model_copy(update={"norm_groups": groups}), seed=0).decoder.out[0]
    x = torch.randn(1, 32, 16, 16, generator=torch.Generator().manual_seed(0))
    brighter = x.clone()
    brighter[:, ::2] += 3
    change = float((norm(brighter) - norm(x)).detach().abs().mean())
    assert change < 1e-5 if lost else change > 0.3


def attended(reach: float | None) -> torch.Tensor:
    """How much each of 4x4 positions changes when the token of the top left quarter does."""
    torch.manual_seed(0)
    block = AttentionBlock(32, 32, token_width=8, reach=reach).requires_grad_(False)
    torch.nn.init.normal_(block.proj_out.weight)
    x, tokens = torch.randn(1, 32, 4, 4), torch.randn(1, 4, 8)
    changed = tokens.clone()
    changed[:, 0] += 1
    return (block(x, changed) - block(x, tokens)).abs().amax(dim=(0, 1))


def test_with_a_short_reach_a_token_matters_to_its_own_place_only() -> None:
    change = attended(0.1)
    near, far = change[:2, :2], torch.cat([change[2:].flatten(), change[:, 2:].flatten()])
    assert near.min() > 50 * far.max()


def test_without_reach_a_token_matters_everywhere() -> None:
    change = attended(None)
    assert change.min() > 0.01 * change.max()


def test_a_huge_reach_is_no_reach() -> None:
    torch.testing.assert_close(attended(1e4), attended(None), rtol=0, atol=1e-5)


def features(norm: Literal["instance", "layer"], level: float) -> torch.Tensor:
    """The stem's features of a condition of one colour but for a small square, on a torus, which has no border."""
    stem = build_model(SMALL.model_copy(update={"encoder_norm": norm}), seed=0).encoder.cnn.requires_grad_(False)
    for module in stem.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.padding_mode = "circular"
    condition = torch.full((1, 3, 64, 64), level)
    condition[..., 24:40, 24:40] += 0.2
    result: torch.Tensor = stem(condition)
    return result


@pytest.mark.parametrize(("norm", "tells"), [("instance", False), ("layer", True)])
def test_only_the_layer_norm_tells_a_dark_condition_from_a_bright_one(
    norm: Literal["instance", "layer"], tells: bool
) -> None:
    """Two conditions that differ by a constant, which an instance norm takes away."""
    dark, bright = features(norm, -0.6), features(norm, 0.6)
    change = float((bright - dark).abs().mean() / dark.std())
    assert change > 0.5 if tells else change < 1e-3
