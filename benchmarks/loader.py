"""Times the loader beside a bare loop over the same files, and decoders beside each other.

    python benchmarks/loader.py [--pictures 300] [--only squash random decoders conditions] [--json FILE]

Processor time on one thread, so that a busy machine disturbs little; contenders take turns within a round.

  squash      shards at training size.
  random      shards of kept 640x480 JPEGs, of which random squares are cut and resized.
  conditions  the same squares of 640x480 sketches and label maps, decoded as the loader does it and by OpenCV; distances
              to the edges of a 256x256 sketch, likewise.

Loops beside the loader, all by the loader's own libraries (simplejpeg, libdeflate, OpenCV, torch), over files in memory:
  pictures            decode the same shards' JPEGs and nothing else; where random, crop and resize the same squares.
                      This is the bare loop of the loader's goal.
  originals           decode the original 640x480 JPEGs and resize them to training size; no conditions.
  decode              the same, and the conditions: decode, crop, resize.
  decode_and_render   the same, and what a network needs: conditions rendered, float planes, one batch.

Decoders read 640x480 JPEGs and give 256x256 RGB;
those that scale while decoding lose something, told as PSNR to the picture that OpenCV decodes whole and reduces by
area averages. PyTurboJPEG is timed where it is installed. Prints a table, and JSON.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import io
import json
import os
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from sharding import SIDE, data_of, write_pictures

from piti.config import DegradationConfig
from piti.data.conditions import StoredCondition, edge_distance, render_condition
from piti.data.decoding import decode_condition, decode_image
from piti.data.examples import Degraded, draw_chances
from piti.data.geometry import crop_photograph, resize_edges, resize_photograph
from piti.data.loader import TrainingLoader
from piti.data.publishing import write_manifest
from piti.data.sharding import encode_condition_png, plan_shards, write_shard
from piti.data.shards import ShardSet
from piti.data.sketch import detect_edges
from piti.data.sources import open_source

BATCH = 10
Decoder = Callable[[bytes], NDArray[np.uint8]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Times of the loader and of JPEG decoders.")
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument(
        "--only", nargs="*", default=["squash", "random", "decoders", "conditions"], help="parts to measure"
    )
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    figures: dict[str, Any] = {"load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as folder:
        files = write_pictures(Path(folder) / "pictures", options.pictures)
        for geometry in {"squash", "random"}.intersection(options.only):
            figures[geometry] = loader_figures(Path(folder), geometry)
        if "decoders" in options.only:
            figures["decoders"] = decoder_figures([path.read_bytes() for path in files[:100]])
        if "conditions" in options.only:
            figures["conditions"] = condition_figures(
                [simplejpeg.decode_jpeg(path.read_bytes()) for path in files[:100]]
            )
    for name, value in figures.items():
        print(f"{name:10s} {value}")
    print(json.dumps(figures))
    if options.json:
        options.json.write_text(json.dumps(figures) + "\n")


def loader_figures(root: Path, geometry: str) -> dict[str, float]:
    """Milliseconds a picture of the loader and of the loops that it is compared with, and shares of their rates."""
    data = data_of(root / "pictures", geometry)
    uri = str(root / f"shards-{geometry}")
    plans = plan_shards(open_source(data), data, 0)
    for plan in plans:
        write_shard(plan, data, uri)
    about = {name: getattr(data, name) for name in ("modality", "num_classes", "image_size", "geometry")}
    write_manifest(uri, list(plans.digests), about)
    shards = ShardSet(uri)
    steps = shards.num_samples("train") // BATCH

    def read(degraded: Degraded) -> None:
        loader = TrainingLoader(
            uri, data, degraded=degraded, scale=4, batch_size=BATCH, rank=0, world_size=1, num_workers=0, seed=0
        )
        for _ in islice(loader, steps):
            pass

    samples = [entry for name in shards.shard_names("train") for entry in shards.samples(name)][: steps * BATCH]

    def decoded(key: str, members: dict[str, bytes]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        image = simplejpeg.decode_jpeg(members["jpg"])
        if geometry != "random":
            return image, decode_condition(members).values
        edges = decode_condition(members, boxes[key]).values
        return crop_photograph(image, boxes[key], SIDE), resize_edges(edges, SIDE, SIDE)

    boxes = {
        key: draw_chances(0, 0, key, num_variants=0, crop_from=decode_image(members).shape).box
        for key, members in samples
    }

    def decode() -> None:
        for key, members in samples:
            decoded(key, members)

    def render() -> None:
        for first in range(0, len(samples), BATCH):
            images, conditions = [], []
            for key, members in samples[first : first + BATCH]:
                image, edges = decoded(key, members)
                images.append(torch.from_numpy(image).permute(2, 0, 1).float().div_(127.5).sub_(1.0))
                conditions.append(render_condition(StoredCondition(edges), "sketch"))
            torch.stack(images), torch.stack(conditions)

    def pictures() -> None:
        for key, members in samples:
            image = simplejpeg.decode_jpeg(members["jpg"])
            if geometry == "random":
                crop_photograph(image, boxes[key], SIDE)

    originals = [path.read_bytes() for path in sorted((root / "pictures").iterdir())][: len(samples)]
    online = DegradationConfig(variants=0)
    contenders: dict[str, Callable[[], None]] = {
        "loader": lambda: read(None),
        "decode": decode,
        "decode_and_render": render,
        "pictures": pictures,
        "originals": lambda: [by_simplejpeg(content) for content in originals] and None,
        "degrading_online": lambda: read(online),
    }
    seconds = best_in_turns(contenders)
    each = {f"{name}_ms": round(1000 * value / len(samples), 2) for name, value in seconds.items()}
    shares = {
        f"share_of_{name}_rate": round(seconds[name] / seconds["loader"], 3)
        for name in ("decode", "decode_and_render", "pictures", "originals")
    }
    return {**each, **shares}


def condition_figures(images: list[NDArray[np.uint8]]) -> dict[str, float]:
    """Milliseconds a condition."""
    boxes = [
        draw_chances(0, 0, str(number), num_variants=0, crop_from=image.shape).box
        for number, image in enumerate(images)
    ]
    sketches = [detect_edges(image) for image in images]
    labels = [cv2.GaussianBlur(image[..., 0], (0, 0), 6) // 16 for image in images]
    small = [resize_edges(box.cut(edges), SIDE, SIDE) for box, edges in zip(boxes, sketches, strict=True)]
    contenders: dict[str, Callable[[], None]] = {
        "distance": lambda: [edge_distance(edges) for edges in small] and None,
        "distance_by_opencv": lambda: (
            [cv2.distanceTransform(cv2.bitwise_not(edges), cv2.DIST_L1, 3, dstType=cv2.CV_8U) for edges in small]
            and None
        ),
    }

    def add(name: str, contents: list[bytes]) -> None:
        contenders[name] = lambda: (
            [decode_condition({"cond.png": content}, box) for content, box in zip(contents, boxes, strict=True)]
            and None
        )
        contenders[f"{name}_by_opencv"] = lambda: (
            [cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED) for content in contents] and None
        )

    add("sketch", [encode_condition_png(edges, "sketch") for edges in sketches])
    add("labels", [encode_condition_png(values, "mask") for values in labels])
    return {name: round(1000 * value / len(images), 3) for name, value in best_in_turns(contenders).items()}


def best_in_turns(contenders: dict[str, Callable[[], None]], rounds: int = 4) -> dict[str, float]:
    """Least processor seconds of each contender over a few rounds, in which all take turns."""
    for work in contenders.values():
        work()
    times = [{name: best(work, rounds=1) for name, work in contenders.items()} for _ in range(rounds)]
    return {name: min(entry[name] for entry in times) for name in contenders}


def best(work: Callable[[], None], rounds: int = 3) -> float:
    """Least processor seconds of a few rounds."""
    taken = []
    for _ in range(rounds):
        before = time.process_time()
        work()
        taken.append(time.process_time() - before)
    return min(taken)


def reduced(image: NDArray[Any]) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def by_pillow(content: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(content)).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def by_pillow_scaled(content: bytes) -> NDArray[np.uint8]:
    picture = Image.open(io.BytesIO(content))
    picture.draft("RGB", (SIDE, SIDE))
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def by_opencv(flags: int) -> Decoder:
    return lambda content: reduced(
        cv2.cvtColor(cv2.imdecode(np.frombuffer(content, np.uint8), flags), cv2.COLOR_BGR2RGB)
    )


def by_simplejpeg(content: bytes) -> NDArray[np.uint8]:
    """As the loader and sharding do it."""
    return resize_photograph(simplejpeg.decode_jpeg(content), SIDE)


def decoders() -> dict[str, Decoder]:
    found: dict[str, Decoder] = {
        "pillow": by_pillow,
        "pillow scaled": by_pillow_scaled,
        "opencv": by_opencv(cv2.IMREAD_COLOR),
        "opencv scaled": by_opencv(cv2.IMREAD_REDUCED_COLOR_2),
    }
    found["simplejpeg"] = lambda content: reduced(simplejpeg.decode_jpeg(content))
    found["simplejpeg scaled"] = lambda content: reduced(
        simplejpeg.decode_jpeg(content, min_height=SIDE, min_width=SIDE, min_factor=1)
    )
    if importlib.util.find_spec("turbojpeg") is None:
        print("PyTurboJPEG is not installed, and left out")
    if importlib.util.find_spec("turbojpeg"):
        turbo = importlib.import_module("turbojpeg")
        try:
            jpeg = turbo.TurboJPEG()
        except RuntimeError:
            print("PyTurboJPEG is there without its library, and left out")
            return found
        found["turbojpeg"] = lambda content: reduced(jpeg.decode(content, pixel_format=turbo.TJPF_RGB))
        found["turbojpeg scaled"] = lambda content: reduced(
            jpeg.decode(content, pixel_format=turbo.TJPF_RGB, scaling_factor=(5, 8))
        )
    return found


def decoder_figures(contents: list[bytes]) -> dict[str, dict[str, float]]:
    """For each decoder milliseconds a picture, and mean PSNR in dB to OpenCV's whole decoding."""

    def over_all(decode: Decoder) -> Callable[[], None]:
        return lambda: [decode(content) for content in contents] and None

    found, truth = decoders(), by_opencv(cv2.IMREAD_COLOR)
    seconds = best_in_turns({name: over_all(decode) for name, decode in found.items()})
    figures = {}
    for name, decode in found.items():
        errors = [np.mean((decode(content).astype(float) - truth(content)) ** 2) for content in contents]
        psnr = [10 * np.log10(255**2 / max(error, 1e-10)) for error in errors]
        each = 1000 * seconds[name] / len(contents)
        figures[name] = {"ms": round(each, 2), "psnr_db": round(float(np.mean(psnr)), 1)}
    return figures


if __name__ == "__main__":
    main()
