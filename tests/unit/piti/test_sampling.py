"""Drawing with the base network: condition and null condition in one pass are what two passes give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from piti.config.presets import load_config
from piti.diffusion import GaussianDiffusion, PictureNoise, guided, quantize_8bit
from piti.evaluation.cascade import Order, draw_base, picture_seed
from piti.models import build_model, round_weights


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_one_pass_over_both_conditions_is_what_two_passes_give(scale: float) -> None:
    preset = load_config("demo-sketch")
    sampling = {"base_sampler": "ddim", "base_respacing": "3", "guidance_scale": scale, "precision": "fp32"}
    config = preset.model_copy(update={"sampling": preset.sampling.model_copy(update=sampling)})
    model = build_model(config.models.base, seed=0).eval().requires_grad_(False)
    torch.nn.init.normal_(model.decoder.out[2].weight, std=0.05)  # type: ignore[arg-type]  # zero when fresh
    size = config.models.base.condition_size
    orders = [Order(key, 0, torch.full((1, size, size), value)) for key, value in (("a", -0.5), ("b", 0.5))]
    conditions = torch.stack([order.condition for order in orders])

    def conditional(x_t: Tensor, t: Tensor, *, null: bool = False) -> Tensor:
        output: Tensor = model(x_t, t, condition=None if null else conditions)
        return output

    side = config.models.base.image_size
    noise = PictureNoise([picture_seed(config.seed, order.key) for order in orders], (3, side, side), conditions.device)
    schedule = config.diffusion.base
    wanted = GaussianDiffusion(schedule.schedule, schedule.steps, "3").sample(
        guided(conditional, scale, config.sampling.normalized_guidance), (2, 3, side, side), noise.initial(), "ddim"
    )
    # A level apart where rounding differs by a hair.
    assert float((draw_base(model, orders, config) - quantize_8bit(wanted)).abs().max()) <= 1.01 / 127.5


def test_pictures_are_drawn_from_rounded_weights() -> None:
    preset = load_config("demo-sketch")
    sampling = {"base_sampler": "dpm++", "base_respacing": "2", "precision": "bf16"}
    config = preset.model_copy(update={"sampling": preset.sampling.model_copy(update=sampling)})
    model = build_model(config.models.base, seed=0).eval().requires_grad_(False)
    size = config.models.base.condition_size
    orders = [Order("a", 0, torch.zeros(1, size, size))]
    every_time = draw_base(model, orders, config)
    assert torch.equal(draw_base(round_weights(model), orders, config), every_time)
