"""How far few sampling steps are from many, from the same noise.

    python benchmarks/few_steps.py [--worlds photographs pyramid spectrum upsampler] [--pictures 32]
    python benchmarks/few_steps.py --config PRESET_OR_PATH --checkpoint URI --shards URI [--pictures 16] [--device cpu]
        [--steps 250 100 50 35 25 20 15 10] [--ddim-references 1000 250] [--threads N] [--json FILE]

Worlds (exact_worlds.py): networks that are exact, so that a distance is the sampler's alone. 64x64 with the base's
cosine schedule: one of 400 crops of photographs with noise of four levels around it; a Haar pyramid of independent
choices among pieces of photographs; a Gaussian with their mean and spectrum (not clamped to [-1, 1], as it leaves it).
256x256 with the upsampler's linear schedule: the pyramid's two finest levels, the coarse band given.

Checkpoint: the base network that the config describes, from `--pictures` validation conditions with the config's
guidance, drawn by `piti.evaluation.cascade`: what counts for published weights, and what nobody else can measure for them.

The reference is deterministic: `unipc` at 250 even distances of log-SNR. Beside it, RMS distances to 1000 and to 250
DDIM steps (eta 0) at even timesteps; published sampling is DDPM, which has no fixed result to compare with. A picture's
distance is its root mean square difference in levels of 8 bits. `otherwise` is the share of a world's decisions (a
picture, or a block and level of the pyramid) that came out different from the reference's.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from exact_worlds import ExactNetwork, Photographs, Pyramid, Spectrum, World, crops, haar
from torch import Tensor

from piti.config.presets import load_config
from piti.data.conditions import unit_range
from piti.data.examples import ExampleReader
from piti.diffusion import GaussianDiffusion
from piti.diffusion.gaussian import Sampler
from piti.evaluation.cascade import Order, draw_base
from piti.models import round_weights
from piti.models.checkpoints import load_model

Draw = Callable[[Sampler, str], Tensor]
"""Pictures (N, 3, S, S) in [-1, 1] of a sampler and respacing, always from the same noise."""

WORLDS = ("photographs", "pyramid", "spectrum", "upsampler")
REFERENCE: tuple[Sampler, str] = ("unipc", "logsnr250")
SETTINGS: tuple[tuple[Sampler, str], ...] = (("ddim", ""), ("dpm++", ""), ("dpm++", "logsnr"), ("unipc", "logsnr"))
FAST27: tuple[tuple[Sampler, str], ...] = (("ddim", "fast27"), ("dpm++", "fast27"), ("unipc", "fast27"))
NUM_CROPS = 400
NUM_LARGE = 4  # pictures of 256x256, crops of that size fewer too
UPSAMPLER_NOISE_SCALE = 0.997


@dataclass(frozen=True)
class Distance:
    """Root mean squares in levels of 8 bits: over all, of the median and of the 95th percentile picture."""

    rms: float
    median: float
    percentile95: float
    psnr: float
    otherwise: float

    @classmethod
    def between(cls, pictures: Tensor, reference: Tensor, decisions: Callable[[Tensor], Tensor] | None) -> Distance:
        """`decisions` None: nothing is known of them. PSNR is in dB of 255 levels, `otherwise` a share."""
        squares = ((pictures - reference).double() * 127.5).square().flatten(1).mean(1)
        rms = math.sqrt(float(squares.mean()))
        each = squares.sqrt()
        otherwise = math.nan
        if decisions is not None:
            otherwise = float((decisions(pictures) != decisions(reference)).double().mean())
        psnr = 20 * math.log10(255 / rms) if rms else math.inf
        return cls(rms, float(each.median()), float(each.quantile(0.95)), psnr, otherwise)


def main() -> None:
    parser = argparse.ArgumentParser(description="Few sampling steps against many, from the same noise.")
    parser.add_argument("--worlds", nargs="*", choices=WORLDS, default=WORLDS)
    parser.add_argument("--config", help="preset or path, with --checkpoint and --shards: a trained base network")
    parser.add_argument("--checkpoint", help="URI of its checkpoint")
    parser.add_argument("--shards", help="URI of the shards whose validation split gives the conditions")
    parser.add_argument("--device", default="cpu", help="where the trained network runs")
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--steps", type=int, nargs="+", default=[250, 100, 50, 35, 25, 20, 15, 10])
    parser.add_argument("--ddim-references", type=int, nargs="*", default=[1000, 250])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    trained = [arguments.config, arguments.checkpoint, arguments.shards]
    if any(trained) and not all(trained):
        sys.exit("a trained network needs all of --config, --checkpoint and --shards")
    torch.set_num_threads(arguments.threads)
    figures = {}
    if all(trained):
        draw = trained_network(arguments)
        figures["checkpoint"] = table(arguments.checkpoint, draw, None, arguments)
    else:
        for name in arguments.worlds:
            world, draw = world_of(name, arguments.pictures)
            decisions = None if name == "spectrum" else world.decisions
            figures[name] = table(name, draw, decisions, arguments, FAST27 if name == "upsampler" else ())
    if arguments.json:
        arguments.json.write_text(json.dumps(figures) + "\n")


def table(
    name: str,
    draw: Draw,
    decisions: Callable[[Tensor], Tensor] | None,
    arguments: argparse.Namespace,
    more: tuple[tuple[Sampler, str], ...] = (),
) -> dict[str, dict[str, dict[str, float]]]:
    """Print and return the distances of every setting, and of `more`, to every reference."""
    start = time.perf_counter()
    wanted: list[tuple[Sampler, str]] = [REFERENCE, *(("ddim", str(count)) for count in arguments.ddim_references)]
    references = {f"{sampler} {respacing}": draw(sampler, respacing) for sampler, respacing in wanted}
    main_name, *other_names = references
    print(f"\n{name}: {len(references[main_name])} pictures; distance to {main_name} from the same noise")
    print(f"  {'':16s} {'RMS':>7s} {'median':>7s} {'95 %':>7s} {'PSNR':>6s} {'otherwise':>9s}", *other_names, sep="  ")
    rows: dict[str, dict[str, dict[str, float]]] = {}
    settings = [(sampler, f"{spacing}{count}") for count in arguments.steps for sampler, spacing in SETTINGS]
    settings = [setting for setting in [*more, *settings] if setting != REFERENCE]
    for sampler, respacing in settings:
        label = f"{sampler} {respacing}"
        drawn = references[label] if label in references else draw(sampler, respacing)
        found = {other: Distance.between(drawn, reference, decisions) for other, reference in references.items()}
        rows[label] = {other: asdict(distance) for other, distance in found.items()}
        first = found[main_name]
        otherwise = "-" if math.isnan(first.otherwise) else f"{first.otherwise:.1%}"
        also = "".join(f"{found[other].rms:11.2f}" for other in other_names)
        print(
            f"  {label:16s} {first.rms:9.2f} {first.median:8.2f} {first.percentile95:8.2f} {first.psnr:7.1f}"
            f" {otherwise:>10s}{also}",
            flush=True,
        )
    print(f"  {time.perf_counter() - start:.0f} s")
    return rows


def world_of(name: str, count: int) -> tuple[World, Draw]:
    """A world of WORLDS, and how `count` pictures of it are drawn (NUM_LARGE at most for the upsampler)."""
    is_upsampler = name == "upsampler"
    generator = torch.Generator().manual_seed(1)
    if is_upsampler:
        photographs = crops(16, 256)
        count = min(count, NUM_LARGE)
        coarse = photographs[:count] * 0.7
        for _ in range(2):
            coarse = haar(coarse)[0]
        world: World = Pyramid(photographs, levels=2, given=coarse)
        noise = torch.randn(count, 3, 256, 256, generator=generator) * UPSAMPLER_NOISE_SCALE
    else:
        photographs = crops(NUM_CROPS, 64)
        make = {"photographs": Photographs, "pyramid": lambda pictures: Pyramid(pictures, levels=4)}
        world = make.get(name, Spectrum)(photographs)
        noise = torch.randn(count, 3, 64, 64, generator=generator)
    schedule = "linear" if is_upsampler else "squaredcos_cap_v2"
    network = ExactNetwork(world, schedule)

    def draw(sampler: Sampler, respacing: str) -> Tensor:
        diffusion = GaussianDiffusion(schedule, respacing=respacing)
        return diffusion.sample(network, noise.shape, noise, sampler, clip=name != "spectrum")

    return world, draw


def trained_network(arguments: argparse.Namespace) -> Draw:
    """The base network of a checkpoint, drawing from the first validation conditions as the sample job does."""
    config = load_config(arguments.config)
    model = load_model(arguments.checkpoint, config.models.base)
    model = model.to(arguments.device).eval().requires_grad_(False)
    if config.sampling.precision == "bf16":
        round_weights(model)
    reader = ExampleReader(arguments.shards, "validation", config.data, None, config.scale)
    examples = [reader.example(number, None) for number in range(min(arguments.pictures, len(reader)))]
    orders = [Order(example.key, 0, unit_range(example.condition)) for example in examples]
    batches = [orders[i : i + config.sampling.batch_size] for i in range(0, len(orders), config.sampling.batch_size)]

    def draw(sampler: Sampler, respacing: str) -> Tensor:
        changed = {"base_sampler": sampler, "base_respacing": respacing}
        changed_config = config.model_copy(update={"sampling": config.sampling.model_copy(update=changed)})
        return torch.cat([draw_base(model, batch, changed_config) for batch in batches])

    return draw


if __name__ == "__main__":
    main()
