"""Do the demo's pictures follow their conditions, and does its upsampler sharpen? From the networks that a demo run left behind.

    .venv/bin/python benchmarks/demo_conditions.py [--config demo] [--set root=...] > docs/demo-result.json

`top5`: for each stage's pictures and the final ones the share whose own truth is among the five nearest of all truths (root mean
square at 16x16 pixels), and the same where each picture is told another one's truth is its own. `upsampler`: from the truth's own
low-resolution pictures, PSNR in dB and perceptual distance to the truth (EfficientNet-Lite0), beside bicubic enlargement;
`upsampler_degraded`: the same from the degraded pictures of the validation split, with which it was trained. `frechet`: Fréchet distance of
the base network's pictures to the truth, through the upsampler and enlarged.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from eval import Metric, fid
from eval.lpips import lpips_distances
from eval.pictures import mean_metric
from eval.retrieval import truth_ranks
from piti.checkpoints import final_checkpoint
from piti.cli.config import parse_settings
from piti.config import Config
from piti.config.presets import load_config
from piti.data.examples import ExampleReader
from piti.data.resizing import base_pictures
from piti.evaluation.cascade import Order, draw_base, draw_upsampled, to_uint8
from piti.evaluation.networks import open_extractor, open_perceptual_network
from piti.models import PITIModel, build_model
from piti.models.checkpoints import load_model
from piti.plan import Plan
from piti.training.stages import TrainingStage

NEAREST = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="demo")
    parser.add_argument("--set", action="append", default=[], help="an override: dotted.key=value")
    arguments = parser.parse_args()
    config = load_config(arguments.config, parse_settings(arguments.set))
    plan = Plan(config)
    assert plan.degrade is not None
    keys, batch = validation_batch(config, plan.shard.output, plan.degrade.output)
    count = len(keys)
    small = TrainingStage("stage1", config).examples(batch, torch.device("cpu"))
    large = TrainingStage("upsampler", config).examples(batch, torch.device("cpu"))
    orders = [Order(key, 0, condition) for key, condition in zip(keys, small.condition, strict=True)]

    upsampler = ready(load_model(final_checkpoint(plan.upsampler.output), config.models.upsampler))
    networks = {
        "untrained": build_model(config.models.base, seed=config.seed),
        "stage1": load_model(final_checkpoint(plan.stage1.output), config.models.base),
        "base": load_model(final_checkpoint(plan.stage2.output), config.models.base),
    }
    drawn = {name: draw_base(ready(network), orders, config) for name, network in networks.items()}
    final = draw_upsampled(upsampler, orders, drawn["base"], config)
    top5 = {"final": shares(levels(final), levels(large.pictures))}
    top5 |= {name: shares(levels(pictures), levels(small.pictures)) for name, pictures in drawn.items()}
    assert large.low_res is not None
    true = base_pictures(large.pictures, config.models.base.image_size)
    result = {
        "pictures": count,
        "chance": round(NEAREST / count, 3),
        "top5": top5,
        "upsampler": sharpness(config, upsampler, orders, true, large.pictures),
        "frechet": {
            name: round(fid(levels(pictures), levels(large.pictures), open_extractor(config)).value, 1)
            for name, pictures in (("upsampler", final), ("bicubic", enlarged(drawn["base"], config)))
        },
        "upsampler_degraded": sharpness(config, upsampler, orders, large.low_res, large.pictures),
    }
    print(json.dumps(result, indent=1))


def validation_batch(config: Config, shards: str, degraded: str | None) -> tuple[list[str], dict[str, Tensor]]:
    """Keys of the conditions that the demo draws, and them with their truths; `low_res` where `degraded` names companions."""
    reader = ExampleReader(shards, "validation", config.data, degraded, config.scale)
    read = [reader.example(number, None) for number in range(config.sampling.num_samples or len(reader))]
    names = ("image", "condition", "low_res") if degraded else ("image", "condition")
    return [one.key for one in read], {name: torch.stack([getattr(one, name) for one in read]) for name in names}


def ready(network: PITIModel) -> PITIModel:
    return network.eval().requires_grad_(False)


def levels(pictures: Tensor) -> NDArray[np.uint8]:
    """float (N, 3, H, W) in [-1, 1] -> uint8 (N, H, W, 3)."""
    return np.stack(to_uint8(pictures))


def shares(pictures: NDArray[np.uint8], truths: NDArray[np.uint8]) -> dict[str, float]:
    shuffled = np.random.default_rng(0).permutation(len(truths))
    own, others = (float((truth_ranks(pictures, wanted) < NEAREST).mean()) for wanted in (truths, truths[shuffled]))
    return {"own": round(own, 3), "shuffled": round(others, 3)}


def enlarged(low_res: Tensor, config: Config) -> Tensor:
    return F.interpolate(low_res, scale_factor=config.scale, mode="bicubic", align_corners=False).clamp(-1, 1)


def sharpness(
    config: Config, upsampler: PITIModel, orders: list[Order], low_res: Tensor, truths: Tensor
) -> dict[str, Any]:
    """Means over pictures, and the difference of perceptual distances, bicubic's less the upsampler's, with its interval."""
    network = open_perceptual_network(config)
    made = {"upsampler": draw_upsampled(upsampler, orders, low_res, config), "bicubic": enlarged(low_res, config)}
    found: dict[str, Any] = {"psnr_db": {}, "perceptual": {}}
    distances = {}
    for name, pictures in made.items():
        errors = (pictures - truths).square().flatten(1).mean(dim=1) / 4
        found["psnr_db"][name] = round(float((-10 * errors.log10()).mean()), 2)
        distances[name] = lpips_distances(levels(pictures), levels(truths), network)
        found["perceptual"][name] = round(float(distances[name].mean()), 4)
    gain = mean_metric("gain", distances["bicubic"] - distances["upsampler"])
    found["perceptual_gain"] = interval(gain, 4)
    return found


def interval(metric: Metric, digits: int) -> dict[str, float]:
    return {name: round(float(getattr(metric, name)), digits) for name in ("value", "low", "high")}


if __name__ == "__main__":
    main()
