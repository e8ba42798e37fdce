"""Does the demo's prior pay? Stage 1 and stage 2 from the prior, and as many steps from random weights, in one process.

    .venv/bin/python benchmarks/demo_prior_pays.py --folder /tmp/prior-pays [--learning-rate 1.2e-3] > result.json

Both see the same photographs in the same order under the same noise, and draw from the same conditions and noise. Random weights
learn whole from the first step on, at the learning rate that the prior itself was made with: freezing a random decoder,
or finetuning's small steps, would be no match. A second start goes on where the first was.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from demo_conditions import interval, levels, ready, shares, validation_batch

from eval.pictures import mean_metric
from piti import storage
from piti.checkpoints import final_checkpoint
from piti.config import Config
from piti.config.presets import load_config
from piti.data.sharding import shard_dataset
from piti.evaluation.cascade import Order, draw_base
from piti.job import JobContext, JobSpec
from piti.models import PITIModel, build_model
from piti.models.checkpoints import load_model
from piti.plan import Plan, Step
from piti.training.loop import train
from piti.training.stages import Examples, TrainingStage
from piti.training.workers import Workers


def configs(folder: Path, learning_rate: float) -> dict[str, Config]:
    """The demo's config on one worker, and the same number of steps from random weights."""
    root = {"root": str(folder / "root"), "cluster.num_workers": 1}
    prior = load_config("demo", root)
    path = folder / "random.safetensors"
    safetensors.torch.save_file(build_model(prior.models.base, seed=prior.seed).state_dict(), path)
    steps = prior.training.stage1.total_steps + prior.training.stage2.total_steps
    dropout = {"condition_dropout": 0.2}
    scratch = {
        "pretrained.base": {"path": str(path), "sha256": storage.sha256_file(str(path))},
        "training.stage1.phases": [{"steps": 1, "learning_rate": 1e-9}],
        "training.stage2.phases": [
            {"steps": steps * 3 // 4, "learning_rate": learning_rate, **dropout},
            {"steps": steps - steps * 3 // 4, "learning_rate": learning_rate / 4, **dropout},
        ],
    }
    return {"prior": prior, "scratch": load_config("demo", {**root, **scratch})}


def trained(step: Step, config: Config) -> PITIModel:
    """The network that a stage's own code ends with."""
    if step.result() is None:
        context = JobContext(JobSpec.for_step(step, config, storage.join(config.root, "jobs", step.fingerprint[:16])))
        storage.write_json(step.marker, train(context, Workers()))
    return load_model(final_checkpoint(step.output), config.models.base)


def measured(config: Config, examples: Examples, networks: dict[str, Callable[[], PITIModel]]) -> dict[str, Any]:
    """By network: root mean square distance to the truth in 8-bit levels, picture by picture, and the share of five nearest."""
    orders = [Order(str(number), 0, condition) for number, condition in enumerate(examples.condition)]
    truths, found = levels(examples.pictures), {}
    for name, network in networks.items():
        drawn = levels(draw_base(ready(network()), orders, config))
        errors = np.sqrt(np.square(drawn.astype(np.float64) - truths).mean(axis=(1, 2, 3)))
        found[name] = {"errors": errors, "top5": shares(drawn, truths)["own"]}
        print(
            f"{name}: {errors.mean():.2f} levels, {found[name]['top5']:.0%} among the nearest",
            file=sys.stderr,
            flush=True,
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--learning-rate", type=float, default=1.2e-3, help="of the run from random weights")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    variants = configs(arguments.folder, arguments.learning_rate)
    prior, scratch = variants["prior"], variants["scratch"]
    shards = shard_dataset(prior.data, Plan(prior).shard.output, prior.seed).uri
    examples = TrainingStage("stage1", prior).examples(validation_batch(prior, shards, None)[1], torch.device("cpu"))
    found = measured(prior, examples, {
        "the prior itself": lambda: TrainingStage("stage1", prior).initial_model({})[0],
        "stage 1": lambda: trained(Plan(prior).stage1, prior),
        "stage 2": lambda: trained(Plan(prior).stage2, prior),
        "random weights": lambda: (trained(Plan(scratch).stage1, scratch), trained(Plan(scratch).stage2, scratch))[1],
    })  # fmt: skip
    gain = mean_metric("gain", found["random weights"]["errors"] - found["stage 2"]["errors"])
    result = {
        "pictures": len(examples.pictures),
        "steps": prior.training.stage1.total_steps + prior.training.stage2.total_steps,
        "batch_size": prior.training.stage2.batch_size,
        "rmse_levels": {name: round(float(values["errors"].mean()), 2) for name, values in found.items()},
        "top5": {name: values["top5"] for name, values in found.items()},
        "gain_levels": interval(gain, 2),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
