"""FLOPs and bytes of a training step at the published sizes, counted with tensors that have no content: seconds, no GPU.

    .venv/bin/python benchmarks/step_cost.py

docs/scaling.md quotes the tables and says what they assume. A multiplication and an addition are two FLOPs. "update" is
AdamW's and the EMA's traffic with memory: weights, gradients and two moments read, weights and moments written, weights and
the average read, the average written, all float32.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from piti.config import ModelConfig
from piti.models.network import PITIModel

UPDATE_VALUES = 10  # float32 values moved to and from memory for each learning parameter

GPU_FLOPS, GPU_BYTES = 989e12, 3.35e12  # an H100's dense bf16 rate and memory bandwidth, by its data sheet
SHARE = 0.4  # of that rate: the aim of benchmarks/gpu.py
IN_NODE_BYTES = 370e9  # what an all-reduce gets of NVLink, a second
LINKS = {"8 x 400 Gb/s a node": 350e9, "400 Gb/s a node": 45e9, "100 Gb/s a node": 11e9}  # all-reduce between nodes
GPUS_A_NODE = 8
PICTURES = (4, 16)  # on a GPU at once: a microbatch, and the published share


@dataclass(frozen=True)
class Cost:
    """Of one picture: `forward` and `step` (forward, losses, backward) in FLOPs; bytes that the backward pass keeps of the
    forward; parameters in all and those that learn.
    """

    forward: int
    step: int
    kept: int
    parameters: int
    learning: int

    def memory(self, batch_size: int) -> int:
        """Bytes on a GPU between forward and backward: weights, their average, two moments, gradients, and what is kept."""
        return 4 * (self.parameters + 4 * self.learning) + batch_size * self.kept


def cost(config: ModelConfig, *, only_encoder: bool) -> Cost:
    """Count a step of one picture, in which only the encoder learns, or all."""
    with torch.device("meta"), mock.patch("torch.autocast", return_value=nullcontext()):  # it knows no such device
        model = PITIModel(config).train().requires_grad_(not only_encoder)
        model.encoder.requires_grad_(True)
        size = config.image_size
        x, t = torch.empty(1, 3, size, size), torch.zeros(1, dtype=torch.long)
        condition = torch.empty(1, config.condition_channels, config.condition_size, config.condition_size)
        low_res = torch.empty(1, 3, size // 4, size // 4) if config.super_resolution else None
        own, kept = {id(parameter) for parameter in model.parameters()}, dict[int, int]()

        def keep(value: Tensor) -> Tensor:
            base = value if value._base is None else value._base  # views share their memory
            if id(base) not in own:
                kept[id(base)] = base.nbytes
                alive.append(base)
            return value

        alive: list[Tensor] = []  # so that no id is given twice
        with FlopCounterMode(display=False) as forward, saved_tensors_hooks(keep, lambda value: value):
            output = model(x, t, condition=condition, low_res=low_res)
        with FlopCounterMode(display=False) as backward:
            output.square().mean().backward()
    parameters = list(model.parameters())
    learning = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in parameters)
    flops = forward.get_total_flops(), forward.get_total_flops() + backward.get_total_flops()
    return Cost(*flops, sum(kept.values()), total, learning)


def main() -> None:
    """Print the table."""
    stages = {
        "stage 1": cost(ModelConfig.base(), only_encoder=True),
        "stage 2": cost(ModelConfig.base(), only_encoder=False),
        "upsampler": cost(ModelConfig.upsampler(), only_encoder=False),
    }
    print("| stage | GFLOP forward | GFLOP step | parameters | learning | gradients | update | checkpoint |")
    print("|---|---|---|---|---|---|---|---|")
    for name, found in stages.items():
        gradients = 4 * found.learning / 1e9
        checkpoint = 4 * 4 * found.learning / 1e9  # weights, average, two moments
        print(
            f"| {name} | {found.forward / 1e9:,.1f} | {found.step / 1e9:,.0f} | {found.parameters / 1e6:.1f} M | "
            f"{found.learning / 1e6:.1f} M | {gradients:.2f} GB | {UPDATE_VALUES * gradients:.1f} GB | {checkpoint:.2f} GB |"
        )
    print()
    print(f"| stage | kept a picture | {' | '.join(f'memory, {size} pictures' for size in PICTURES)} |")
    print("|---|---|" + "---|" * len(PICTURES))
    for name, found in stages.items():
        print(
            f"| {name} | {found.kept / 1e9:.2f} GB | {' | '.join(f'{found.memory(n) / 1e9:.1f} GB' for n in PICTURES)} |"
        )
    saved = (1 - stages["stage 1"].memory(n) / stages["stage 2"].memory(n) for n in PICTURES)
    print(f"| stage 1 below stage 2 | | {' | '.join(f'{share:.0%}' for share in saved)} |")
    print()
    print(f"| GPUs | {' | '.join(f'stage 2, {link}' for link in LINKS)} |")
    print("|---|" + "---|" * len(LINKS))
    for gpus in (1, 2, 4, 8, 16, 32, 64):
        shown = [f"{efficiency(stages['stage 2'], 128, gpus, bandwidth):.0%}" for bandwidth in LINKS.values()]
        print(f"| {gpus} | {' | '.join(shown)} |")


def step_seconds(found: Cost, batch_size: int, gpus: int, between_nodes: float) -> float:
    """A step: its compute, what of the gradients' ring all-reduce the backward pass does not hide, and the update."""
    compute = -(-batch_size // gpus) * found.step / (GPU_FLOPS * SHARE)
    backward = compute * (found.step - found.forward) / found.step
    bandwidth = IN_NODE_BYTES if gpus <= GPUS_A_NODE else min(IN_NODE_BYTES, between_nodes)
    reduce = 2 * (gpus - 1) / gpus * 4 * found.learning / bandwidth
    update = UPDATE_VALUES * 4 * found.learning / GPU_BYTES
    return compute + max(0.0, reduce - backward) + update


def efficiency(found: Cost, batch_size: int, gpus: int, between_nodes: float) -> float:
    """Pictures a second for each GPU, as a share of a single GPU's."""
    alone = step_seconds(found, batch_size, 1, between_nodes)
    return alone / (gpus * step_seconds(found, batch_size, gpus, between_nodes))


if __name__ == "__main__":
    main()
