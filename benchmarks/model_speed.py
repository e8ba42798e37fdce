"""Times a forward pass and a training step of the two networks, beside the published code if that is at hand.

    python benchmarks/model_speed.py [--published FOLDER] [--networks base upsampler] [--batch 2]
        [--rounds 3] [--float32]

FOLDER of --published holds PITI's package `pretrained_diffusion`. Its import of timm, which it never uses, is met by
an empty module where timm is not installed. The published code and ours live in a process each, ours with the environment that
our jobs get (piti.settings); all contenders take turns within a round, and the median is reported. "stored" is
sampling's network, whose weights are rounded to bf16 once. For CPUs; gpu.py is for GPUs.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import multiprocessing
import os
import statistics
import sys
import time
import types
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor, nn

from piti.diffusion import GaussianDiffusion
from piti.models import ModelConfig, build_model, round_weights
from piti.settings import settings

STORED = "ours bfloat16, stored"
Contender = Callable[[bool], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", type=Path, help="folder that holds PITI's pretrained_diffusion")
    parser.add_argument("--networks", nargs="*", choices=["base", "upsampler"], default=["base", "upsampler"])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--float32", action="store_true", help="leave out bfloat16, slow on a CPU without AMX")
    arguments = parser.parse_args()
    for network in arguments.networks:
        measure(network, arguments)


def config_of(network: str) -> ModelConfig:
    full = ModelConfig.base() if network == "base" else ModelConfig.upsampler()
    return full.model_copy(update={"dropout": 0.0})


def measure(network: str, arguments: argparse.Namespace) -> None:
    """Print the median seconds of each contender's forward pass and training step."""
    sides = [Side("ours", network, arguments)]
    if arguments.published:
        sides.insert(0, Side("published", network, arguments))
    seconds: dict[str, dict[str, list[float]]] = {}
    for round_number in range(arguments.rounds + 1):
        for side in sides:
            for name in side.names:
                for kind in ("forward",) if name == STORED else ("forward", "step"):
                    taken = side.time(name, kind)
                    if round_number:  # the first round warms up
                        seconds.setdefault(name, {}).setdefault(kind, []).append(taken)
    for side in sides:
        side.end()
    medians = {
        name: {kind: statistics.median(values) for kind, values in kinds.items()} for name, kinds in seconds.items()
    }
    reference = next(iter(medians.values()))
    print(f"{network}: batch {arguments.batch}, seconds")
    for name, kinds in medians.items():
        ratios = " ".join(f"{kind} {value:8.3f} ({reference[kind] / value:4.2f}x)" for kind, value in kinds.items())
        print(f"  {name:30s} {ratios}")


class Side:
    """The published code or ours in a process of its own, which times a contender when asked to."""

    def __init__(self, whose: str, network: str, arguments: argparse.Namespace) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        process = context.Process(target=run_side, args=(whose, network, arguments, theirs), daemon=True)
        before = os.environ.copy()
        os.environ.update(settings().job_environment() if whose == "ours" else {})
        process.start()
        os.environ.clear()
        os.environ.update(before)
        theirs.close()
        self.names: list[str] = self._pipe.recv()

    def time(self, name: str, kind: str) -> float:
        """Seconds of one run. Raises EOFError if the process died."""
        self._pipe.send((name, kind))
        return float(self._pipe.recv())

    def end(self) -> None:
        self._pipe.close()


def run_side(whose: str, network: str, arguments: argparse.Namespace, pipe: Connection) -> None:
    """Answer with seconds until the pipe is closed."""
    contenders = contenders_of(whose, network, arguments)
    pipe.send(list(contenders))
    with contextlib.suppress(EOFError):
        while True:
            name, kind = pipe.recv()
            start = time.perf_counter()
            contenders[name](kind == "step")
            pipe.send(time.perf_counter() - start)


def contenders_of(whose: str, network: str, arguments: argparse.Namespace) -> dict[str, Contender]:
    config = config_of(network)
    batch = inputs_of(config, arguments.batch)
    if whose == "published":
        return {"published float32": contender(published_function(arguments.published, config, batch), None)}
    ours, stored = our_function(config, batch), our_function(config, batch)
    round_weights(stored[0])  # type: ignore[arg-type]
    found = {"ours float32": contender(ours, None)}
    if not arguments.float32:
        found |= {"ours bfloat16": contender(ours, torch.bfloat16), STORED: contender(stored, torch.bfloat16)}
    return found


Forward = tuple[nn.Module, Callable[[Tensor, Tensor], Tensor], Tensor]


def contender(forward: Forward, autocast: torch.dtype | None) -> Contender:
    """A function that runs one forward pass, or with True one training step (losses, backward, no optimizer)."""
    module, function, x0 = forward
    diffusion = GaussianDiffusion()
    t = torch.full((len(x0),), 400)
    noise = torch.randn_like(x0)

    def model_fn(x_t: Tensor, time_: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
            return function(x_t, time_)

    def run(train: bool) -> None:
        with contextlib.nullcontext() if train else torch.no_grad():
            if not train:
                model_fn(x0, t.float())
                return
            losses = diffusion.training_losses(model_fn, x0, t, noise)
            (losses["mse"] + losses["vb"]).mean().backward()
            module.zero_grad(set_to_none=True)  # not left to lie about while the others have their turn

    return run


def inputs_of(config: ModelConfig, batch: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    side = config.image_size
    shapes = {"x0": (3, side, side), "condition": (config.condition_channels, 256, 256)}
    if config.super_resolution:
        shapes["low_res"] = (3, side // 4, side // 4)
    return {name: torch.rand(batch, *shape, generator=generator) * 2 - 1 for name, shape in shapes.items()}


def our_function(config: ModelConfig, batch: dict[str, Tensor]) -> Forward:
    model = build_model(config, seed=0)
    rest = {name: value for name, value in batch.items() if name != "x0"}
    return model, lambda x_t, time_: model(x_t, time_, **rest), batch["x0"]


def published_network(folder: Path, config: ModelConfig) -> nn.Module:
    """The published code's network, without dropout; see this file's text on FOLDER and timm."""
    if "timm" not in sys.modules and importlib.util.find_spec("timm") is None:
        transformer = types.ModuleType("timm.models.vision_transformer")
        transformer.PatchEmbed = None  # type: ignore[attr-defined]
        for name in ("timm", "timm.models"):
            sys.modules.setdefault(name, types.ModuleType(name))
        sys.modules["timm.models.vision_transformer"] = transformer
    sys.path.insert(0, str(folder))
    published = importlib.import_module("pretrained_diffusion.script_util")
    options = published.model_and_diffusion_defaults(int(config.super_resolution))
    options |= {"learn_sigma": True, "dropout": 0.0, "mode": "coco"}
    options |= {"num_channels": config.model_channels, "num_head_channels": config.num_head_channels}
    model: nn.Module = published.create_model_and_diffusion(**options)[0]
    return model


def published_function(folder: Path, config: ModelConfig, batch: dict[str, Tensor]) -> Forward:
    model = published_network(folder, config)
    rest = {"ref": batch["condition"]} | ({"low_res": batch["low_res"]} if config.super_resolution else {})
    return model, lambda x_t, time_: model(x_t, time_, **rest), batch["x0"]


if __name__ == "__main__":
    main()
