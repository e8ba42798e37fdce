"""How far a trained base network's few sampling steps are from its many, from the same noise.

    python benchmarks/few_steps.py --config PRESET_OR_PATH --checkpoint URI --shards URI [--pictures 16] [--device cpu]
        [--steps 250 100 50 35 25 20 15 10]

`--pictures` validation conditions are drawn with the config's guidance by `piti.evaluation.cascade`. The reference is
`unipc` at 250 even distances of log-SNR. A picture's distance is its root mean square difference in levels of 8 bits.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

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


def levels(pictures: Tensor, reference: Tensor) -> Tensor:
    """Root mean square difference of each picture, in levels of 8 bits."""
    return ((pictures - reference).double() * 127.5).square().flatten(1).mean(1).sqrt()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="preset or path")
    parser.add_argument("--checkpoint", required=True, help="URI of a base checkpoint")
    parser.add_argument("--shards", required=True, help="URI of the shards whose validation split gives the conditions")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--steps", type=int, nargs="+", default=[250, 100, 50, 35, 25, 20, 15, 10])
    arguments = parser.parse_args()
    draw = trained_network(arguments)
    reference = draw(*REFERENCE)
    print(f"{len(reference)} pictures; distance to {' '.join(REFERENCE)} in levels: median, 95 %")
    for sampler, respacing in (
        (sampler, f"{spacing}{count}") for count in arguments.steps for sampler, spacing in SETTINGS
    ):
        if (sampler, respacing) != REFERENCE:
            found = levels(draw(sampler, respacing), reference)
            print(f"  {sampler} {respacing:10s} {found.median():7.2f} {found.quantile(0.95):7.2f}", flush=True)


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
