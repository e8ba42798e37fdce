"""One table for a GPU: how fast each stage learns and draws, what that is of the GPU's rate, and whether it computes the same.

    python benchmarks/gpu.py [--device cuda] [--size published|small] [--minutes 9] [--published FOLDER]

Training rows are the project's own step (`accumulate_gradients`, `learn`): losses, backward, clip, AdamW, timestep sampler,
average; the upsampler with its perceptual (VGG19's shape, untrained) and adversarial losses. Pictures lie on the device:
no data is read. "of rate": the network's floating-point operations (benchmarks/step_cost.py, without picture losses and
optimizer) against the measured rate of a bf16 product of large square matrices. "waits": how often
the host waited for the GPU in a step, by torch's sync debug mode. Sampling rows are 25 guided base steps and 27 upsampler
steps. "published loop": what the published TrainLoop does around its network in a step (float32 with torch's defaults, AdamW, one norm a parameter
read by the host, averages one parameter at a time, quartiles of the losses read by the host); its own network where
--published names a folder that holds PITI's `pretrained_diffusion`, else ours in its layout (contiguous).
Rows come in order of importance; what does not fit into --minutes is named at the end.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from model_speed import published_network
from step_cost import cost
from torch import Tensor, nn

from degradations import bsr_degrade, l0_smooth
from piti.config import Config, ModelConfig
from piti.config.presets import load_config
from piti.diffusion import GaussianDiffusion
from piti.errors import first_line
from piti.models import PITIModel, build_model, round_weights
from piti.training.gradients import accumulate_gradients
from piti.training.loop import learn
from piti.training.stages import Examples, TrainingStage
from piti.training.state import TrainingState
from piti.training.workers import Workers, use_precision

SAMPLING_STEPS = {"sample-base": 25, "sample-upsampler": 27}
COMPILING_SECONDS = 150  # what a row that compiles may take
SMALL = {
    "image_size": 16, "model_channels": 32, "channel_mult": [1, 1], "num_res_blocks": 1, "attention_resolutions": [8],
    "num_head_channels": 32, "condition_size": 32, "encoder_width": 32, "encoder_layers": 1, "encoder_heads": 2,
}  # fmt: skip
UPSAMPLER = {"image_size": 256, "super_resolution": True, "channel_mult": [1, 1, 2, 2, 4, 4], "num_res_blocks": 2}


@dataclass(frozen=True)
class Row:
    """A way of doing a kind of work."""

    work: str
    batch: int
    compiled: bool = False
    channels_last: bool = True
    checkpointing: bool = False

    def __str__(self) -> str:
        layout = "last" if self.channels_last else "first"
        chosen = f"compile {'on ' if self.compiled else 'off'}  channels {layout:5s}"
        return f"{self.work:18s} batch {self.batch:3d}  {chosen}{'  checkpointing' * self.checkpointing}"


def rows(small: int, large: int) -> Iterator[Row]:
    """In order of importance."""
    yield Row("published loop", small, channels_last=False)
    yield from (Row(work, small) for work in ("stage1", "stage2", "upsampler", "sample-base", "sample-upsampler"))
    yield from (Row("stage2", large, checkpointing=checkpointing) for checkpointing in (False, True))
    yield Row("stage2", small, compiled=True)
    yield from (Row(work, small, channels_last=False) for work in ("stage2", "upsampler"))
    yield Row("published loop", large, channels_last=False)
    yield from (Row(work, large) for work in ("stage1", "sample-base"))
    yield from (Row(work, small, compiled=True) for work in ("upsampler", "stage1", "sample-base"))
    yield Row("stage1", small, channels_last=False)
    yield from (Row(work, large) for work in ("sample-upsampler", "upsampler"))
    yield Row("stage2", large, compiled=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", choices=["published", "small"], default="published")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--published", type=Path, help="folder that holds PITI's pretrained_diffusion")
    arguments = parser.parse_args()
    deadline = time.monotonic() + 60 * arguments.minutes - 20
    is_cuda = arguments.device.startswith("cuda")
    use_precision("bf16")
    rate = product_rate(arguments.device, 8192 if is_cuda else 256 if arguments.size == "small" else 2048)
    name = torch.cuda.get_device_name() if is_cuda else arguments.device
    print(f"{name}, torch {torch.__version__}, {arguments.size} size, bf16 matrix product {rate / 1e12:.2f} TFLOP/s")
    figures: dict[str, Any] = {"device": name, "torch": torch.__version__, "flops_a_second": rate, "rows": []}
    for lines in (agreement, degrading):
        try:
            for line in lines(arguments):
                print(line, flush=True)
        except Exception as error:  # noqa: BLE001 - the table is worth more
            print(f"{lines.__name__} failed: {first_line(error)}", flush=True)
    left_out = []
    for row in rows(*((16, 64) if arguments.size == "published" else (2, 4))):
        needed = COMPILING_SECONDS if row.compiled else 15 if is_cuda else 0
        if time.monotonic() + needed > deadline:
            left_out.append(str(row))
            continue
        found = measured(row, arguments, rate)
        figures["rows"].append({**vars(row), **found})
        print(f"{row}  {described(found)}", flush=True)
    if left_out:
        print("no time for: " + "; ".join(left_out))
    print(json.dumps(figures))


def product_rate(device: str, side: int) -> float:
    """Floating-point operations a second of a bf16 product of square matrices, `side` x `side`, the best of three series."""
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    return 2 * side**3 / min(seconds_of(lambda: a @ b, 5) for _ in range(3))


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


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


def described(found: dict[str, Any]) -> str:
    if "error" in found:
        return str(found["error"])
    memory = f"  {found['peak_gibibytes']:5.1f} GiB" if "peak_gibibytes" in found else ""
    waits = f"  {found['waits']} waits" if "waits" in found else ""
    return f"{found['pictures_a_second']:9.2f} pictures/s  {100 * found['share']:5.1f} % of rate{memory}{waits}"


def measured(row: Row, arguments: argparse.Namespace, rate: float) -> dict[str, Any]:
    """A row's figures; `error` where it fails, for lack of memory or otherwise: the other rows are still measured."""
    is_cuda = arguments.device.startswith("cuda")
    gc.collect()  # the row before this one, networks in circles included
    if is_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    # The published code leaves torch's defaults: TF32 in convolutions, not in products.
    torch.backends.cudnn.allow_tf32 = row.work == "published loop"
    told: dict[str, Any] = {}
    try:
        config, job = prepared(row, arguments)
        seconds = seconds_of(job, 10 if is_cuda else 2)
        if is_cuda:
            told = {"peak_gibibytes": torch.cuda.max_memory_allocated() / 2**30, "waits": waits_of(job)}
    except torch.OutOfMemoryError:
        return {"error": "does not fit into memory"}
    except Exception as error:  # noqa: BLE001
        return {"error": first_line(error)}
    finally:
        use_precision("bf16")
        torch.compiler.reset()
    pictures = row.batch / seconds
    found: dict[str, Any] = {"pictures_a_second": pictures / SAMPLING_STEPS.get(row.work, 1)}
    each = cost(config.model_copy(update={"activation_checkpointing": False}), only_encoder=row.work == "stage1")
    forwards = {"sample-base": 2, "sample-upsampler": 1}.get(row.work)
    found["share"] = (each.step if forwards is None else forwards * each.forward) * pictures / rate
    return found | told


def waits_of(job: Callable[[], object]) -> int:
    """How often the host waits for the GPU in one run."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            job()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def prepared(row: Row, arguments: argparse.Namespace) -> tuple[ModelConfig, Callable[[], object]]:
    """The network's sizes, and a function that does one step."""
    config, device = config_of(row, arguments.size), arguments.device
    sizes = config.models.upsampler if row.work.endswith("upsampler") else config.models.base
    if row.work == "published loop":
        return sizes, published_step(sizes, row.batch, arguments)
    model = build_model(sizes, seed=0)
    if not row.channels_last:
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    if row.work.startswith("sample"):
        model.to(device)
        if row.compiled:
            model.compile()
        return sizes, sampling_step(
            model, examples(sizes, config.scale, row.batch * (2 - sizes.super_resolution), device)
        )
    state = TrainingState(
        TrainingStage(row.work, config),  # type: ignore[arg-type]
        model,
        Workers(device=torch.device(device)),
        {},
    )
    shown = examples(sizes, config.scale, row.batch, device)
    return sizes, lambda: learn(state, accumulate_gradients(state, shown))


def sampling_step(model: PITIModel, shown: Examples) -> Callable[[], object]:
    """One evaluation, in bf16 with stored weights."""
    round_weights(model.eval().requires_grad_(False))
    device = shown.pictures.device
    t = torch.full((len(shown.pictures),), 400.0, device=device)

    @torch.no_grad()
    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            model(shown.pictures, t, latent=latent, low_res=shown.low_res)

    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        latent = model.encode(shown.condition)
    return step


def config_of(row: Row, size: str) -> Config:
    small = size == "small"
    base = {"condition_channels": 1, "activation_checkpointing": row.checkpointing, **(SMALL if small else {})}
    upsampler = {**base, **UPSAMPLER, **({**SMALL, "image_size": 32} if small else {}), "super_resolution": True}
    stage = row.work if row.work in ("stage1", "upsampler") else "stage2"
    overrides: dict[str, Any] = {
        "root": tempfile.gettempdir(), "data.image_size": 32 if small else 256, "diffusion": {}, "models.base": base,
        "models.upsampler": upsampler, "allow_stand_in_networks": True,
        f"training.{stage}": {
            "phases": [{"steps": 1000, "learning_rate": 1e-6}], "batch_size": row.batch, "compile": row.compiled,
            "gradient_clip": 1.0, **({"picture_losses_from_step": 0} if stage == "upsampler" else {}),
        },
    }  # fmt: skip
    return load_config("demo-sketch", overrides)


def examples(sizes: ModelConfig, scale: int, batch: int, device: str) -> Examples:
    side, seen = sizes.image_size, sizes.condition_size

    def pictures(channels: int, pixels: int) -> Tensor:
        return torch.rand(batch, channels, pixels, pixels, device=device) * 2 - 1

    low_res = pictures(3, side // scale) if sizes.super_resolution else None
    return Examples(pictures(3, side), pictures(sizes.condition_channels, seen), low_res)


def published_step(sizes: ModelConfig, batch: int, arguments: argparse.Namespace) -> Callable[[], object]:
    """See this file's text on "published loop"."""
    device = arguments.device
    if arguments.published:
        sizes = sizes.model_copy(update={"condition_channels": 3})
        model: nn.Module = published_network(arguments.published, sizes).to(device)
    else:
        model = build_model(sizes, seed=0).to(device, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    condition = "ref" if arguments.published else "condition"
    model.train()
    parameters, diffusion = list(model.parameters()), GaussianDiffusion()
    averages = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.0)
    shown = examples(sizes, 1, batch, device)
    t = torch.randint(diffusion.num_timesteps, (batch,), device=device)

    def step() -> None:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.detach_().zero_()
        noise = torch.randn_like(shown.pictures)
        losses = diffusion.training_losses(
            lambda x_t, time_: model(x_t, time_, **{condition: shown.condition}), shown.pictures, t, noise
        )
        loss = losses["mse"] + losses["vb"]
        for values in (losses["mse"], losses["vb"], loss):
            for _ in zip(t.cpu().numpy(), values.detach().cpu().numpy(), strict=True):
                pass
        loss.mean().backward()
        sum((parameter.grad**2).sum().item() for parameter in parameters if parameter.grad is not None)
        optimizer.step()
        for average, parameter in zip(averages, parameters, strict=True):
            average.mul_(0.9999).add_(parameter.detach(), alpha=1e-4)

    return step


def agreement(arguments: argparse.Namespace) -> Iterator[str]:
    """The base network on the device against the CPU in float32, the same weights and inputs."""
    row = Row("stage2", 1)
    sizes = config_of(row, arguments.size).models.base
    model = build_model(sizes, seed=0).eval()
    nn.init.normal_(model.decoder.out[2].weight, std=0.05)  # type: ignore[arg-type]  # a fresh network answers zero
    shown, time_ = examples(sizes, 1, 1, "cpu"), torch.tensor([400.0])
    with torch.no_grad():
        expected = model(shown.pictures, time_, condition=shown.condition)
        moved = model.to(arguments.device)
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            with torch.autocast(torch.device(arguments.device).type, dtype, dtype != torch.float32):
                inputs = (value.to(arguments.device) for value in (shown.pictures, time_, shown.condition))
                x_t, when, condition = inputs
                found = moved(x_t, when, condition=condition).float().cpu()
            error = float((found - expected).abs().max() / expected.abs().max())
            yield f"base network, {arguments.device} {name} against CPU fp32: largest difference {error:.1e} of the largest value"


def degrading(arguments: argparse.Namespace) -> Iterator[str]:
    """L0 smoothing on the device and on the CPU, BSR on one core: 256x256 pictures."""
    rng, number = np.random.default_rng(0), 32 if arguments.device.startswith("cuda") else 2
    pictures = torch.from_numpy(rng.integers(0, 256, (number, 256, 256, 3), dtype=np.uint8))
    for device in dict.fromkeys((arguments.device, "cpu")):
        moved = pictures.to(device)
        seconds = seconds_of(lambda moved=moved: l0_smooth(moved, 0.002), 1)
        yield f"l0_smooth, {device}: {number / seconds:.1f} pictures/s"
    synchronise()
    began = time.perf_counter()
    for picture in pictures.numpy()[:8]:
        bsr_degrade(picture, 4, rng, "light")
    yield f"bsr_degrade light, one core: {min(8, number) / (time.perf_counter() - began):.1f} pictures/s"


if __name__ == "__main__":
    main()
