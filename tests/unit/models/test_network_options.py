"""What callers rely on: seeds, null conditions, latents, gradients with a frozen decoder, memory options, bf16."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from piti.errors import ConfigError
from piti.models import ModelConfig, PatchDiscriminator, PITIModel, build_model, round_weights
from piti.models.unet import GroupNorm

Fill = Callable[[nn.Module], nn.Module]
SMALL = ModelConfig(
    image_size=16,
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(8,),
    num_head_channels=32,
    dropout=0.0,
    condition_channels=1,
    condition_size=32,
    encoder_width=64,
    encoder_layers=2,
    encoder_heads=2,
)


@pytest.fixture
def model(filled: Fill) -> PITIModel:
    built = build_model(SMALL, seed=0)
    filled(built)
    return built


@pytest.fixture
def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "x_t": torch.randn(2, 3, 16, 16, generator=generator),
        "t": torch.tensor([10.0, 900.0]),
        "condition": torch.rand(2, 1, 32, 32, generator=generator) * 2 - 1,
    }


def test_a_seed_fixes_the_weights_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = build_model(SMALL, seed=1)
    assert torch.equal(torch.rand(3), expected)
    again, other = build_model(SMALL, seed=1), build_model(SMALL, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.encoder.cls_token, other.encoder.cls_token)
    assert 0.015 < first.encoder.cls_token.std().item() < 0.025
    assert 0.008 < first.encoder.positional_embedding.std().item() < 0.012


def test_no_condition_is_the_picture_of_all_ones(model: PITIModel, batch: dict[str, Tensor]) -> None:
    x_t, t = batch["x_t"], batch["t"]
    with torch.no_grad():
        null = model(x_t, t)
        ones = model(x_t, t, condition=torch.ones(2, 1, 32, 32))
        masked = model(x_t, t, condition=batch["condition"], condition_mask=torch.tensor([True, False]))
        plain = model(x_t, t, condition=batch["condition"])
    assert torch.allclose(null, ones, atol=1e-5)
    assert torch.allclose(masked[1], ones[1], atol=1e-5)
    assert torch.allclose(masked[0], plain[0], atol=1e-5)
    assert not torch.allclose(plain[1], ones[1], atol=1e-2)


def test_encoding_once_gives_the_same_as_encoding_at_every_step(model: PITIModel, batch: dict[str, Tensor]) -> None:
    with torch.no_grad():
        latent = model.encode(batch["condition"])
        assert latent.tokens.shape == (2, 4, 64)
        assert latent.summary.shape == (2, 64)
        assert torch.equal(model(batch["x_t"], batch["t"], latent=latent), model(**batch))
    with pytest.raises(ValueError, match="either a condition or its latent"):
        model(**batch, latent=latent)


def test_gradient_reaches_the_encoder_through_a_frozen_decoder(model: PITIModel, batch: dict[str, Tensor]) -> None:
    """Stage 1: the decoder's parameters are frozen, the encoder learns through it."""
    model.decoder.requires_grad_(False)
    model(**batch).square().mean().backward()
    assert all(parameter.grad is None for parameter in model.decoder.parameters())
    gradients = {name: parameter.grad for name, parameter in model.encoder.named_parameters()}
    # A bias in front of an instance norm cannot matter; every other parameter must.
    silent = [name for name, gradient in gradients.items() if gradient is None or not gradient.abs().max() > 1e-7]
    assert not [name for name in silent if not (name.startswith("cnn.conv") and name.endswith("bias"))]


@pytest.mark.parametrize("option", ["activation_checkpointing", "channels_last"])
def test_memory_options_change_no_result(option: str, batch: dict[str, Tensor], filled: Fill) -> None:
    """Outputs and gradients agree to 1e-4 of the largest gradient (float32, other order of summation)."""
    networks = [build_model(SMALL, seed=0).to(memory_format=torch.contiguous_format)]  # type: ignore[call-overload]
    if option == "channels_last":
        networks.append(build_model(SMALL, seed=0).to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    else:
        networks.append(build_model(SMALL.model_copy(update={option: True}), seed=0))
    outputs = []
    for network in networks:
        filled(network)
        output = network(**batch)
        output.square().mean().backward()
        outputs.append(output.detach())
    assert torch.allclose(outputs[0], outputs[1], atol=1e-5 * float(outputs[0].abs().max()))
    for (name, ours), theirs in zip(networks[0].named_parameters(), networks[1].parameters(), strict=True):
        assert ours.grad is not None, name
        assert theirs.grad is not None, name
        scale = max(float(ours.grad.abs().max()), 1e-3)
        assert float((ours.grad - theirs.grad).abs().max()) <= 1e-4 * scale, name


def test_activation_checkpointing_keeps_fewer_activations(batch: dict[str, Tensor]) -> None:
    kept: dict[bool, int] = {}
    for checkpointed in (False, True):
        network = build_model(SMALL.model_copy(update={"activation_checkpointing": checkpointed}), seed=0)
        sizes: list[int] = []

        def pack(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(**batch)
        kept[checkpointed] = sum(sizes)
    assert kept[True] < 0.6 * kept[False]


def test_bf16_autocast_stays_close_and_answers_in_float32(model: PITIModel, batch: dict[str, Tensor]) -> None:
    with torch.no_grad():
        exact = model(**batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model(**batch)
    assert rough.dtype == torch.float32
    assert float((rough - exact).std() / exact.std()) < 0.03


def test_rounding_the_weights_once_is_what_autocast_does_every_time(model: PITIModel, batch: dict[str, Tensor]) -> None:
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        every_time = model(**batch)
        once = round_weights(model)(**batch)
    assert torch.equal(once, every_time)
    assert model.decoder.input_blocks[1][0].in_layers[2].weight.dtype == torch.bfloat16
    assert model.decoder.out[2].weight.dtype == torch.float32


def test_what_does_not_fit_is_named(model: PITIModel, batch: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"\(1, 32, 32\)"):
        model(batch["x_t"], batch["t"], condition=torch.zeros(2, 3, 32, 32))
    with pytest.raises(ValueError, match="low_res"):
        model(**batch, low_res=torch.zeros(2, 3, 4, 4))
    with pytest.raises(ConfigError, match="num_head_channels"):
        build_model(SMALL.model_copy(update={"num_head_channels": 48}))


def test_the_upsampler_looks_at_the_low_resolution_picture(filled: Fill, batch: dict[str, Tensor]) -> None:
    network = filled(build_model(SMALL.model_copy(update={"super_resolution": True}), seed=0))
    with torch.no_grad():
        dark = network(**batch, low_res=-torch.ones(2, 3, 4, 4))
        light = network(**batch, low_res=torch.ones(2, 3, 4, 4))
    assert dark.shape == (2, 6, 16, 16)
    assert not torch.allclose(dark, light, atol=1e-2)
    with pytest.raises(ValueError, match="low_res"):
        network(**batch)


def test_discriminator_judges_patches_of_70_pixels() -> None:
    """64 filters and 3 layers: scores (N, 1, 30, 30) for 256x256, each of which sees 70x70 pixels (Isola et al.)."""
    discriminator = PatchDiscriminator()
    picture = torch.zeros(1, 3, 256, 256, requires_grad=True)
    scores = discriminator(picture)
    assert scores.shape == (1, 1, 30, 30)
    convolutions = [layer for layer in discriminator.model if isinstance(layer, nn.Conv2d)]
    seen = 1
    for layer in reversed(convolutions):
        seen = (seen - 1) * layer.stride[0] + layer.kernel_size[0]
    assert seen == 70
    assert [layer.out_channels for layer in convolutions] == [64, 128, 256, 512, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_norms_on_a_gpu_keep_the_layout_that_convolutions_read(dtype: torch.dtype) -> None:
    """Told without a GPU by the meta device, where torch's own norm answers contiguous maps as on CUDA."""
    with torch.device("meta"):
        norm, x = GroupNorm(64), torch.empty(2, 64, 8, 8, dtype=dtype)
    last = x.to(memory_format=torch.channels_last)
    assert nn.GroupNorm.forward(norm, last.float()).is_contiguous()
    found = norm(last)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert norm(x).is_contiguous()
    assert norm(x.flatten(2)).shape == (2, 64, 64)
