"""Seconds for one 256x256 picture from one condition, and how far few sampling steps are from many.

    python benchmarks/picture_time.py [--published FOLDER] [--rounds 3] [--threads N] [--device cpu|cuda]
        [--base logsnr25] [--upsampler fast27] [--skip time|distance] [--pictures 400] [--json FILE]

Time: the networks at published size with fresh weights (time does not depend on what they are). The published picture
is 250 base steps on a batch of two, condition and null condition, and 27 upsampler steps in float32; one step of each
is timed (median of --rounds; the published code encodes the condition anew in each) and multiplied by the steps. Without --published, our own float32 networks stand in for it. Ours is drawn whole with `piti.sampling`: bf16,
DPM-Solver++(2M), normalised guidance.

Distance: no published weights are needed. The "network" is the exact one of a world of --pictures 64x64 crops of
scikit-image's photographs, each blurred by a little Gaussian noise: the mean of x_0 given x_t is then a softmax over
the crops in closed form. Reference: 1000 steps of DDIM with eta 0, the finest deterministic path of the same process.
From the same noise: 250 and fewer steps of DDIM and of DPM-Solver++, at even timesteps and at even log-SNR. The table
gives the root mean square distance in 8-bit levels over all pictures, that of the median picture, PSNR, and how many pictures ended at another crop altogether.
This world is as hard as can be: a path has to end at one of the crops, so a small deviation either vanishes or decides
for another picture.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
from model_speed import FULL_CHANNELS, config_of, published_network, synchronise
from torch import Tensor

from piti.config import DiffusionConfig, ModelsConfig, SamplingConfig
from piti.diffusion import GaussianDiffusion
from piti.diffusion.gaussian import Sampler
from piti.models import build_model, round_weights
from piti.presets import load_config
from piti.sampling import Order, draw_base, draw_upsampled

PUBLISHED_STEPS = {"base": 250, "upsampler": 27}
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket", "retina", "hubble_deep_field", "immunohistochemistry")
CROP = 64
BLUR = 4 / 127.5  # deviation of the noise around each crop: four levels
NUM_DRAWN = 32
OTHER_PICTURE = 8.0  # levels: beyond, the path has ended at another crop


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds for a picture; few sampling steps against many.")
    parser.add_argument("--published", type=Path, help="folder that holds PITI's pretrained_diffusion")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--base", default="logsnr25", help="our respacing of the base network")
    parser.add_argument("--upsampler", default="fast27", help="our respacing of the upsampler")
    parser.add_argument("--skip", choices=["time", "distance"])
    parser.add_argument("--pictures", type=int, default=400, help="crops in the closed-form world")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    figures: dict[str, Any] = {"torch": torch.__version__, "threads": arguments.threads, "device": arguments.device}
    if arguments.skip != "time":
        figures["time"] = picture_time(arguments)
    if arguments.skip != "distance":
        figures["distance"] = distances(arguments.pictures)
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
    fast: dict[str, Any] = {"base_sampler": "dpm++", "base_respacing": arguments.base, "precision": "bf16"}
    fast |= {"upsampler_sampler": "dpm++", "upsampler_respacing": arguments.upsampler}
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


class ClosedForm:
    """The exact network of a world that consists of `pictures` (M, D), each with Gaussian noise of deviation BLUR."""

    def __init__(self, pictures: Tensor) -> None:
        self._pictures = pictures.double()
        self._lengths = self._pictures.square().sum(1)
        self._share = GaussianDiffusion().coefficients.alphas_cumprod

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise's mean given x_t (N, 3, H, W) at times t (N,), then a variance output of zeros."""
        share = float(self._share[int(t[0])])
        alpha, sigma = share**0.5, (1 - share) ** 0.5
        x = x_t.flatten(1).double()
        variance = sigma**2 + (alpha * BLUR) ** 2
        # log p(picture | x_t), but for a constant
        closeness = (alpha * x @ self._pictures.T - 0.5 * share * self._lengths) / variance
        centre = torch.softmax(closeness, dim=1) @ self._pictures
        noise = sigma / variance * (x - alpha * centre)
        return torch.cat([noise.view_as(x_t).to(x_t.dtype), torch.zeros_like(x_t)], dim=1)


def distances(num_pictures: int) -> dict[str, dict[str, float]]:
    """RMSE in levels, its median over pictures and PSNR in dB, by sampler and steps."""
    model = ClosedForm(crops(num_pictures).flatten(1))
    noise = torch.randn(NUM_DRAWN, 3, CROP, CROP, generator=torch.Generator().manual_seed(1))

    def draw(sampler: Sampler, respacing: str | None) -> Tensor:
        return GaussianDiffusion(respacing=respacing).sample(model, noise.shape, noise, sampler)

    reference = draw("ddim", None)
    table: dict[str, dict[str, float]] = {}
    print(f"{NUM_DRAWN} pictures of a world of {num_pictures}; distance to 1000 DDIM steps (eta 0) from the same noise")
    print(f"  {'':22s} {'RMSE, levels':>12s} {'median':>8s} {'PSNR, dB':>9s} {'others':>7s}")
    for steps in (250, 50, 25, 20, 15, 10):
        for sampler, respacing in (("ddim", f"{steps}"), ("dpm++", f"{steps}"), ("dpm++", f"logsnr{steps}")):
            error = (draw(sampler, respacing) - reference).clamp(-2, 2) * 127.5  # type: ignore[arg-type]
            per_picture = error.square().mean((1, 2, 3)).sqrt()
            rmse = float(error.square().mean().sqrt())
            row = {"rmse": rmse, "median": float(per_picture.median()), "psnr": float(20 * np.log10(255 / rmse))}
            row["others"] = float((per_picture > OTHER_PICTURE).sum())
            table[f"{sampler} {respacing}"] = row
            print(
                f"  {sampler + ' ' + respacing:22s} {row['rmse']:12.2f} {row['median']:8.2f} {row['psnr']:9.1f} {row['others']:7.0f}"
            )
    return table


def crops(count: int) -> Tensor:
    """`count` different crops, float32 (count, 3, 64, 64) in [-1, 1], spread over the bundled photographs."""
    drawn = np.random.default_rng(0)
    found = []
    photographs = [getattr(skimage.data, name)() for name in PHOTOGRAPHS]
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        stride = int(drawn.integers(1, 1 + min(photograph.shape[:2]) // CROP))
        room = np.array(photograph.shape[:2]) - stride * CROP
        top, left = drawn.integers(0, room + 1)
        crop = photograph[top : top + stride * CROP : stride, left : left + stride * CROP : stride]
        found.append(torch.from_numpy(crop.astype(np.float32) / 127.5 - 1).permute(2, 0, 1))
    return torch.stack(found)


if __name__ == "__main__":
    main()
