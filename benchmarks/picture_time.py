"""Seconds for one 256x256 picture from one condition.

    python benchmarks/picture_time.py [--published FOLDER] [--rounds 3] [--threads N] [--device cpu|cuda]
        [--sampler unipc] [--base logsnr50] [--upsampler logsnr27] [--json FILE]

The networks have published size and fresh weights (time does not depend on what they are). The published picture is
250 base steps on a batch of two, condition and null condition, and 27 upsampler steps in float32; one step of each is
timed (median of --rounds; the published code encodes the condition anew in each) and multiplied by the steps. Without
--published, our own float32 networks stand in for it. Ours is drawn whole with `piti.evaluation.cascade`: bf16, normalised
guidance. How far few steps are from many: few_steps.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from model_speed import FULL_CHANNELS, config_of, published_network, synchronise
from torch import Tensor

from piti.config import DiffusionConfig, ModelsConfig, SamplingConfig
from piti.config.presets import load_config
from piti.evaluation.cascade import Order, draw_base, draw_upsampled
from piti.models import build_model, round_weights

PUBLISHED_STEPS = {"base": 250, "upsampler": 27}


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds for a picture.")
    parser.add_argument("--published", type=Path, help="folder that holds PITI's pretrained_diffusion")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sampler", choices=["dpm++", "unipc"], default="unipc", help="ours, of both networks")
    parser.add_argument("--base", default="logsnr50", help="our respacing of the base network")
    parser.add_argument("--upsampler", default="logsnr27", help="our respacing of the upsampler")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    figures: dict[str, Any] = {"torch": torch.__version__, "threads": arguments.threads, "device": arguments.device}
    figures["time"] = picture_time(arguments)
    print(json.dumps(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures) + "\n")


def picture_time(arguments: argparse.Namespace) -> dict[str, Any]:
    each = {network: step_seconds(network, arguments) for network in PUBLISHED_STEPS}
    reference = sum(PUBLISHED_STEPS[network] * seconds for network, seconds in each.items())
    name = "published" if arguments.published else "our networks in float32, published steps"
    print(f"{name}: {reference:.1f} s ({PUBLISHED_STEPS}, one step of each: {each})")
    base, upsampler = our_seconds(arguments)
    ours = base + upsampler
    print(f"ours: {ours:.1f} s ({arguments.base} {base:.1f} s, {arguments.upsampler} {upsampler:.1f} s, drawn whole)")
    print(f"ratio: {reference / ours:.1f}x")
    return {"published": reference, "base": base, "upsampler": upsampler, "ratio": reference / ours, "steps": each}


def our_seconds(arguments: argparse.Namespace) -> tuple[float, float]:
    """Seconds of the base network and of the upsampler, for one picture, after a picture in two steps each."""
    fast: dict[str, Any] = {"base_sampler": arguments.sampler, "base_respacing": arguments.base, "precision": "bf16"}
    fast |= {"upsampler_sampler": arguments.sampler, "upsampler_respacing": arguments.upsampler}
    published = {"models": ModelsConfig(), "diffusion": DiffusionConfig(), "sampling": SamplingConfig(**fast)}
    config = load_config("demo").model_copy(update=published)
    few = {"base_respacing": "2", "upsampler_respacing": "2"}
    short = config.model_copy(update={"sampling": config.sampling.model_copy(update=few)})
    orders = [Order("picture", 0, torch.rand(3, 256, 256) * 2 - 1)]
    seconds = []
    picture = torch.empty(0)
    for network in ("base", "upsampler"):
        model = build_model(getattr(config.models, network), seed=0).to(arguments.device).eval().requires_grad_(False)
        round_weights(model)
        for run in (short, config):
            synchronise()
            start = time.perf_counter()
            drawn = draw_base(model, orders, run) if network == "base" else draw_upsampled(model, orders, picture, run)
            synchronise()
            elapsed = time.perf_counter() - start
        picture = drawn
        seconds.append(elapsed)
    return seconds[0], seconds[1]


@torch.no_grad()
def step_seconds(network: str, arguments: argparse.Namespace) -> float:
    """Median seconds of one float32 step: guided (a batch of two) for the base, plain for the upsampler."""
    config = config_of(network, FULL_CHANNELS)
    size, batch, device = config.image_size, 2 if network == "base" else 1, arguments.device
    x_t, t = torch.randn(batch, 3, size, size, device=device), torch.full((batch,), 400.0, device=device)
    condition = torch.rand(batch, 3, 256, 256, device=device) * 2 - 1
    low = {"low_res": torch.rand(batch, 3, 64, 64, device=device)} if config.super_resolution else {}
    if arguments.published:
        model = published_network(arguments.published, config).to(device).eval()
        run: Callable[[], Tensor] = lambda: model(x_t, t, ref=condition, **low)  # noqa: E731
    else:
        ours = build_model(config, seed=0).to(device).eval()
        latent = ours.encode(condition)
        run = lambda: ours(x_t, t, latent=latent, **low)  # noqa: E731
    seconds = []
    for _ in range(arguments.rounds + 1):
        synchronise()
        start = time.perf_counter()
        run()
        synchronise()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    main()
