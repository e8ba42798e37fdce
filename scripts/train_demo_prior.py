"""Train the demo's prior on a folder of photographs: one process, the stages' own training code, no Prefect, no Ray.

    scripts/train-demo-prior base --photographs DIR [--device cuda]
    scripts/train-demo-prior upsampler --photographs DIR [--device cuda]
    scripts/train-demo-prior check --photographs DIR      does it follow its condition?
    scripts/train-demo-prior export                       into piti/assets, in half precision

A second start resumes at the newest checkpoint. Crops are cut once and kept in memory.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from degradations import bsr_degrade
from eval.retrieval import truth_ranks
from piti import storage
from piti.checkpoints import checkpoint_uri, newest_whole_checkpoint, prune_checkpoints
from piti.config import Config, Stage
from piti.config.presets import load_config
from piti.data.conditions import StoredCondition, levels, paint_condition
from piti.data.palette import NUM_CLASSES, palette_labels
from piti.evaluation.cascade import Order, draw_base, draw_upsampled
from piti.models.checkpoints import load_model
from piti.provenance import code_versions
from piti.seeds import seed_of
from piti.training.gradients import accumulate_gradients
from piti.training.loop import learn
from piti.training.randomness import normal_pictures
from piti.training.stages import TrainingStage
from piti.training.state import TrainingState
from piti.training.workers import Workers

STAGES: dict[str, Stage] = {"base": "pretrain", "upsampler": "upsampler"}
VALIDATION_SHARE = 0.25  # of each photograph, at its right
LONGEST_SIDE_PIXELS = 1600
SMALLEST_CROP_PIXELS = 96


def photographs(folder: Path) -> list[NDArray[np.uint8]]:
    """RGB uint8 (H, W, 3), the longer side at most 1600 pixels, in the order of file names."""
    pictures = []
    for path in sorted(folder.iterdir()):
        loaded = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if loaded is None:
            raise SystemExit(f"{path} is not a picture that OpenCV can read: remove it")
        shrink = min(1.0, LONGEST_SIDE_PIXELS / max(loaded.shape[:2]))
        small = cv2.resize(loaded, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        pictures.append(np.ascontiguousarray(small[..., ::-1]))
    return pictures


def crop(picture: NDArray[np.uint8], split: str, side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A random square of the split's part of `picture`, from 96 pixels to the part's height, at `side` pixels."""
    border = round(picture.shape[1] * (1 - VALIDATION_SHARE))
    part = picture[:, :border] if split == "train" else picture[:, border:]
    largest = min(part.shape[:2])
    length = round(float(np.exp(rng.uniform(np.log(SMALLEST_CROP_PIXELS), np.log(largest)))))
    top, left = (int(rng.integers(0, size - length + 1)) for size in part.shape[:2])
    square = part[top : top + length, left : left + length]
    return np.asarray(cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def make_crops(config: Config, folder: Path, split: str, count: int, *, degraded: bool) -> dict[str, Tensor]:
    """`image` uint8 (N, 3, S, S) and, with `degraded`, `condition` and `low_res` as a loader's batch has them."""
    pictures, rows = photographs(folder), []
    for index in range(count):
        rng = np.random.default_rng(seed_of(config.seed, "demo-prior", split, index))
        image = crop(pictures[index % len(pictures)], split, config.data.image_size, rng)
        row = {"image": image.transpose(2, 0, 1)}
        if degraded:
            row["condition"] = paint_condition(StoredCondition(palette_labels(image)), "mask", NUM_CLASSES)
            row["low_res"] = bsr_degrade(image, config.scale, rng, config.degradation.recipe).transpose(2, 0, 1)
        rows.append(row)
    return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}


def batches(crops: dict[str, Tensor], size: int, seed: int, start: int) -> Iterator[dict[str, Tensor]]:
    """Random crops, each mirrored half the time and with its colour channels in random order."""
    for step in range(start, 1 << 62):
        rng = np.random.default_rng(seed_of(seed, "demo-prior", "batch", step))
        chosen = torch.from_numpy(rng.integers(0, len(crops["image"]), size))
        mirrored = rng.random(size) < 0.5
        orders = [torch.from_numpy(rng.permutation(3)) for _ in range(size)]

        def varied(values: Tensor, mirrored: NDArray[np.bool_] = mirrored, orders: list[Tensor] = orders) -> Tensor:
            rows = [row[order] for row, order in zip(values, orders, strict=True)]
            return torch.stack([row.flip(-1) if flip else row for row, flip in zip(rows, mirrored, strict=True)])

        yield {name: varied(values[chosen]) for name, values in crops.items()}


def train(config: Config, network: str, folder: Path, num_crops: int, device: str) -> str:
    """Train to the end of the stage; the URI of the last checkpoint."""
    stage, workers = TrainingStage(STAGES[network], config), Workers(device=torch.device(device))
    settings, run = stage.settings, storage.join(config.root, network)
    state = TrainingState.begin(stage, {}, workers, run)
    progress = state.progress
    print(f"{network}: cutting {num_crops} crops, then from step {progress.step} of {settings.total_steps}", flush=True)
    crops = make_crops(config, folder, "train", num_crops, degraded=stage.is_upsampler)
    began, before, losses_seen = time.monotonic(), progress.seconds, []
    for batch in batches(crops, settings.batch_size, config.seed, progress.step):
        if progress.step >= settings.total_steps:
            break
        state.begin_phase()
        losses = accumulate_gradients(state, stage.examples(batch, workers.device))
        learn(state, losses)
        progress.seconds = before + time.monotonic() - began
        losses_seen.append(float(losses.terms["mse"].mean()))
        if progress.step % settings.log_every_steps == 0:
            rate = progress.step * settings.batch_size / progress.seconds
            mean = sum(losses_seen) / len(losses_seen)
            print(f"{network}: step {progress.step}, mse {mean:.4f}, {rate:.1f} pictures/s", flush=True)
            losses_seen.clear()
        if progress.step % settings.checkpoint_every_steps == 0 or progress.step == settings.total_steps:
            state.save(state.snapshot(), run, about(state, config))
            prune_checkpoints(run, settings.keep_checkpoints)
    return checkpoint_uri(run, progress.step)


def about(state: TrainingState, config: Config) -> dict[str, object]:
    """What a checkpoint's DONE.json says."""
    return {
        "stage": state.stage.name, "step": state.progress.step, "seconds": round(state.progress.seconds, 1),
        "samples": state.progress.step * state.stage.settings.batch_size, "seed": config.seed,
        "origin": state.origin, "code": code_versions(),
    }  # fmt: skip


def check(config: Config, folder: Path, count: int) -> dict[str, Any]:
    """How far the newest checkpoints follow their conditions, on crops of the photographs' validation parts.

    `losses`: by timestep, the base's loss with the right condition and with one of another crop. `base_top5`: share of
    drawn base pictures whose own truth is among the five nearest of `count`. `psnr_db`: of the upsampler and of bicubic
    enlargement, from degraded pictures.
    """
    crops = make_crops(config, folder, "validation", count, degraded=True)
    cpu, figures = torch.device("cpu"), {}
    stage = TrainingStage("pretrain", config)
    base = load_model(newest(config, "base"), config.models.base).eval()
    examples = stage.examples(crops, cpu)
    noise = normal_pictures(range(count), examples.pictures.shape[1:], config.seed, "check")
    with torch.no_grad():
        for t in (100, 300, 500, 700, 900):
            figures[t] = [
                round(float(stage.diffusion.training_losses(
                    lambda x_t, time, given=given: base(x_t, time, condition=given), examples.pictures,
                    torch.full((count,), t), noise)["mse"].mean()), 4)
                for given in (examples.condition, examples.condition.roll(1, 0))
            ]  # fmt: skip
    orders = [Order(str(index), 0, condition) for index, condition in enumerate(examples.condition)]
    drawn = draw_base(base, orders, config)
    ranks = truth_ranks(*(levels(found).permute(0, 2, 3, 1).numpy() for found in (drawn, examples.pictures)))
    stage = TrainingStage("upsampler", config)
    upsampler = load_model(newest(config, "upsampler"), config.models.upsampler).eval()
    examples = stage.examples(crops, cpu)
    assert examples.low_res is not None
    orders = [Order(str(index), 0, condition) for index, condition in enumerate(examples.condition)]
    sharp = draw_upsampled(upsampler, orders, examples.low_res, config)
    enlarged = F.interpolate(examples.low_res, scale_factor=config.scale, mode="bicubic", align_corners=False)
    return {
        "pictures": count,
        "losses": {t: {"right": right, "shuffled": shuffled} for t, (right, shuffled) in figures.items()},
        "base_top5": float((ranks < 5).mean()),
        "psnr_db": {"upsampler": psnr(sharp, examples.pictures), "bicubic": psnr(enlarged, examples.pictures)},
    }


def psnr(pictures: Tensor, truths: Tensor) -> float:
    """Mean over pictures in [-1, 1], in dB."""
    errors = (pictures.clamp(-1, 1) - truths).square().flatten(1).mean(dim=1) / 4
    return round(float((-10 * errors.log10()).mean()), 2)


def newest(config: Config, network: str) -> str:
    uri = newest_whole_checkpoint(storage.join(config.root, network))
    if uri is None:
        raise SystemExit(f"there is no checkpoint of the {network} below {config.root}: train it first")
    return uri


def export(config: Config, network: str) -> str:
    """Write the newest checkpoint's averaged weights in half precision into the package; its path and sha256."""
    model = load_model(newest(config, network), getattr(config.models, network))
    state = {key: value.detach().half().contiguous().clone() for key, value in model.state_dict().items()}
    path = storage.ASSETS / f"demo-{network}.safetensors"
    path.parent.mkdir(exist_ok=True)
    safetensors.torch.save_file(state, path)
    return f"{path} {storage.sha256_file(str(path))}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["base", "upsampler", "check", "export"])
    parser.add_argument("--photographs", type=Path, help="a folder of pictures, for all but export")
    parser.add_argument("--config", default="demo-prior")
    parser.add_argument("--crops", type=int, default=12000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    config = load_config(arguments.config)
    if arguments.what == "export":
        for network in STAGES:
            print(export(config, network))
    elif arguments.photographs is None:
        parser.error("--photographs is needed")
    elif arguments.what == "check":
        print(json.dumps(check(config, arguments.photographs, config.sampling.num_samples or 48), indent=1))
    else:
        print(train(config, arguments.what, arguments.photographs, arguments.crops, arguments.device))


if __name__ == "__main__":
    main()
