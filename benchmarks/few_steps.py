"""How far a trained base network's few sampling steps are from its many, from the same noise.

    python benchmarks/few_steps.py --config PRESET_OR_PATH --checkpoint URI --shards URI [--pictures 16] [--device cpu]
        [--steps 250 100 50 35 25 20 15 10] [--threads N]

`--pictures` validation conditions are drawn with the config's guidance by `piti.evaluation.cascade`. The reference is
`unipc` at 250 even distances of log-SNR. A picture's distance is its root mean square difference in levels of 8 bits.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from piti.config.presets import load_config
from piti.data.conditions import unit_range
from piti.data.examples import ExampleReader
from piti.diffusion.gaussian import Sampler
from piti.evaluation.cascade import Order, draw_base
from piti.models import round_weights
from piti.models.checkpoints import load_model

Draw = Callable[[Sampler, str], Tensor]
"""Pictures (N, 3, S, S) in [-1, 1] of a sampler and respacing, always from the same noise."""

REFERENCE: tuple[Sampler, str] = ("unipc", "logsnr250")
SETTINGS: tuple[tuple[Sampler, str], ...] = (("ddim", ""), ("dpm++", ""), ("dpm++", "logsnr"), ("unipc", "logsnr"))


@dataclass(frozen=True)
class Distance:
    """Levels of 8 bits: root mean square over all, of the median and of the 95th percentile picture; PSNR in dB."""

    rms: float
    median: float
    percentile95: float
    psnr: float

    @classmethod
    def between(cls, pictures: Tensor, reference: Tensor) -> Distance:
        squares = ((pictures - reference).double() * 127.5).square().flatten(1).mean(1)
        rms, each = math.sqrt(float(squares.mean())), squares.sqrt()
        psnr = 20 * math.log10(255 / rms) if rms else math.inf
        return cls(rms, float(each.median()), float(each.quantile(0.95)), psnr)


def main() -> None:
    parser = argparse.ArgumentParser(description="Few sampling steps against many, from the same noise.")
    parser.add_argument("--config", required=True, help="preset or path")
    parser.add_argument("--checkpoint", required=True, help="URI of a base checkpoint")
    parser.add_argument("--shards", required=True, help="URI of the shards whose validation split gives the conditions")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--steps", type=int, nargs="+", default=[250, 100, 50, 35, 25, 20, 15, 10])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print_table(trained_network(arguments), arguments.steps)


def print_table(draw: Draw, steps: list[int]) -> None:
    """The distance of every setting to the reference."""
    start = time.perf_counter()
    reference = draw(*REFERENCE)
    print(f"{len(reference)} pictures; distance to {' '.join(REFERENCE)}: RMS, median, 95 %, PSNR")
    for sampler, respacing in ((sampler, f"{spacing}{count}") for count in steps for sampler, spacing in SETTINGS):
        if (sampler, respacing) != REFERENCE:
            found = Distance.between(draw(sampler, respacing), reference)
            print(
                f"  {sampler} {respacing:10s} {found.rms:7.2f} {found.median:7.2f} {found.percentile95:7.2f} "
                f"{found.psnr:6.1f} dB",
                flush=True,
            )
    print(f"{time.perf_counter() - start:.0f} s")


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
