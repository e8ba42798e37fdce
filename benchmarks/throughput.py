"""Pictures a second in training and sampling, and their share of the device's matrix-product rate. Meant for a GPU.

    python benchmarks/throughput.py [--device cuda] [--work stage1 stage2 upsampler sample-base sample-upsampler]
        [--batch N ...] [--compile off on] [--precision bf16 fp32] [--checkpointing] [--size published|small]
        [--steps 10]

Training: forward, backward and AdamW, in the losses of equation 3 and the variational bound; stage 1 leaves the decoder
frozen; the upsampler is without its perceptual and adversarial terms. Sampling: one evaluation of the network for each
step, two for the guided base, whose pictures a second are those of 25 base and 27 upsampler steps. One --batch for all
kinds of work, or one for each. Floating-point operations are counted by torch's FlopCounterMode without computing (two
for each multiply-add; what activation checkpointing computes again is not counted), the rate of the device is that of
a product of two square matrices in the same precision, measured first. --size small tries the paths in seconds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from model_speed import synchronise
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from piti.config import ModelConfig
from piti.diffusion import GaussianDiffusion
from piti.models import PITIModel, build_model, round_weights

WORK = ("stage1", "stage2", "upsampler", "sample-base", "sample-upsampler")
SAMPLING_STEPS = {"sample-base": 25, "sample-upsampler": 27}
SMALL: dict[str, Any] = {"model_channels": 32, "num_head_channels": 32, "num_res_blocks": 1}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def main() -> None:
    parser = argparse.ArgumentParser(description="Pictures a second, training and sampling.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--work", nargs="+", choices=WORK, default=WORK)
    parser.add_argument("--batch", nargs="+", type=int, default=[16])
    parser.add_argument("--compile", nargs="+", choices=["off", "on"], default=["off"])
    parser.add_argument("--precision", choices=list(DTYPES), default="bf16")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--size", choices=["published", "small"], default="published")
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    batches = arguments.batch if len(arguments.batch) > 1 else arguments.batch * len(arguments.work)
    if len(batches) != len(arguments.work):
        parser.error("give one --batch, or one for each kind of work")
    name = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else arguments.device
    rate = product_rate(arguments.device, DTYPES[arguments.precision])
    print(f"{name}, torch {torch.__version__}, {arguments.precision}, matrix product {rate / 1e12:.2f} TFLOP/s")
    figures: dict[str, Any] = {"device": name, "torch": torch.__version__, "flops_a_second": rate}
    for work, batch in zip(arguments.work, batches, strict=True):
        for compiled in arguments.compile:
            row = measure(work, batch, compiled == "on", arguments)
            row["share_of_product_rate"] = row["flops"] / row["seconds"] / rate
            figures[f"{work}, compile {compiled}"] = row
            memory = f", {row['peak_gibibytes']:.1f} GiB" if "peak_gibibytes" in row else ""
            print(
                f"  {work:17s} batch {batch:3d} compile {compiled:3s} {row['pictures_a_second']:9.2f} pictures/s "
                f"{100 * row['share_of_product_rate']:5.1f} % of the product rate{memory}",
                flush=True,
            )
    print(json.dumps(figures))


def product_rate(device: str, dtype: torch.dtype, side: int | None = None) -> float:
    """Floating-point operations a second of a product of square matrices, `side` x `side`, the best of three series."""
    side = side or (8192 if device.startswith("cuda") else 2048)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / min(seconds_of(lambda: a @ b, 5) for _ in range(3))


def seconds_of(run: Callable[[], object], times: int) -> float:
    """Seconds of one run, the mean of `times`, after two to warm up (and to compile)."""
    for _ in range(2):
        run()
    synchronise()
    start = time.perf_counter()
    for _ in range(times):
        run()
    synchronise()
    return (time.perf_counter() - start) / times


def measure(work: str, batch: int, compiled: bool, arguments: argparse.Namespace) -> dict[str, float]:
    config = ModelConfig.upsampler() if work.endswith("upsampler") else ModelConfig.base()
    changes: dict[str, Any] = {"activation_checkpointing": arguments.checkpointing}
    config = config.model_copy(update=changes | (SMALL if arguments.size == "small" else {}))
    device, is_cuda = arguments.device, arguments.device.startswith("cuda")
    flops = count(work, config, batch)
    model = build_model(config, seed=0).to(device)
    job = work_of(work, model, batch, device, DTYPES[arguments.precision])
    if compiled:
        model.compile()
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = seconds_of(job, arguments.steps)
    row: dict[str, float] = {"batch": batch, "seconds": seconds, "flops": flops}
    row["pictures_a_second"] = batch / seconds / SAMPLING_STEPS.get(work, 1)
    if is_cuda:
        row["peak_gibibytes"] = torch.cuda.max_memory_allocated() / 2**30
    torch.compiler.reset()
    return row


def count(work: str, config: ModelConfig, batch: int) -> int:
    """Operations of one training step or sampling step, without the optimizer's."""
    plain = config.model_copy(update={"activation_checkpointing": False})
    with FakeTensorMode(), sdpa_kernel(SDPBackend.MATH):  # in which attention is matrix products, which are counted
        job = work_of(work, PITIModel(plain), batch, "cpu", torch.float32, counting=True)
        with FlopCounterMode(display=False) as counter:
            job()
    return counter.get_total_flops()


def work_of(
    work: str, model: PITIModel, batch: int, device: str, dtype: torch.dtype, *, counting: bool = False
) -> Callable[[], None]:
    """A function that does one training step, or one sampling step (both evaluations where it is guided).

    `counting`: without losses and optimizer, which cost next to nothing.
    """
    config = model.config
    side = config.image_size
    rows = 2 * batch if work == "sample-base" else batch
    x0 = torch.rand(rows, 3, side, side, device=device) * 2 - 1
    condition = torch.rand(rows, config.condition_channels, config.condition_size, config.condition_size, device=device)
    low_res = torch.rand(rows, 3, side // 4, side // 4, device=device) if config.super_resolution else None
    t = torch.full((rows,), 400, device=device)

    def autocast() -> torch.autocast:
        return torch.autocast(torch.device(device).type, dtype, dtype != torch.float32)

    if work.startswith("sample"):
        model.eval().requires_grad_(False)
        if dtype == torch.bfloat16:
            round_weights(model)
        with torch.no_grad(), autocast():
            latent = model.encode(condition)

        @torch.no_grad()
        def evaluate() -> None:
            with autocast():
                model(x0, t.float(), latent=latent, low_res=low_res)

        return evaluate
    model.train()
    if work == "stage1":
        model.decoder.requires_grad_(False)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-6, fused=device.startswith("cuda"))
    if counting:

        def backward_only() -> None:
            model(x0, t.float(), condition=condition, low_res=low_res).sum().backward()

        return backward_only
    schedule = "linear" if config.super_resolution else "squaredcos_cap_v2"
    diffusion = GaussianDiffusion(schedule, 1000)

    def model_fn(x_t: Tensor, time_: Tensor) -> Tensor:
        with autocast():
            output: Tensor = model(x_t, time_, condition=condition, low_res=low_res)
        return output

    def step() -> None:
        losses = diffusion.training_losses(model_fn, x0, t, torch.randn_like(x0))
        (losses["mse"] + losses["vb"]).mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


if __name__ == "__main__":
    main()
