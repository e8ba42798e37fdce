"""Times the loader beside a bare loop over the same files, and decoders beside each other.

    python benchmarks/loader.py [--pictures 300] [--json FILE]

Processor time on one thread, so that a busy machine disturbs little. Decoders read 640x480 JPEGs and give 256x256 RGB;
those that scale while decoding lose something, told as PSNR to the picture that Pillow decodes whole and reduces
(bicubic, antialiased). simplejpeg and PyTurboJPEG are timed where they are installed. Prints a table, and JSON.
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
import torch
from numpy.typing import NDArray
from PIL import Image
from sharding import SIDE, data_of, write_pictures

from piti.config import DegradationConfig
from piti.data.conditions import StoredCondition, render_condition
from piti.data.examples import Degraded, picture_tensor
from piti.data.loader import TrainingLoader
from piti.data.sharding import plan_shards, write_shard
from piti.data.shards import ShardSet, write_manifest
from piti.data.sources import open_source

BATCH = 10
Decoder = Callable[[bytes], NDArray[np.uint8]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Times of the loader and of JPEG decoders.")
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    figures: dict[str, Any] = {"load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as folder:
        files = write_pictures(Path(folder) / "pictures", options.pictures)
        figures["loader"] = loader_figures(Path(folder))
        contents = [path.read_bytes() for path in files[:100]]
        figures["decoders"] = {name: decoder_figures(decode, contents) for name, decode in decoders().items()}
    for name, value in figures.items():
        print(f"{name:8s} {value}")
    print(json.dumps(figures))
    if options.json:
        options.json.write_text(json.dumps(figures) + "\n")


def loader_figures(root: Path) -> dict[str, float]:
    """Milliseconds a picture of the loader, of a bare loop, and of the loader when it degrades as it reads."""
    data = data_of(root / "pictures", "squash")
    uri = str(root / "shards")
    plans = plan_shards(open_source(data), data, 0)
    for plan in plans:
        write_shard(plan, data, uri)
    about = {name: getattr(data, name) for name in ("modality", "num_classes", "image_size", "geometry")}
    write_manifest(uri, [plan.name for plan in plans], about)
    shards = ShardSet(uri)
    steps = shards.num_samples("train") // BATCH

    def read(degraded: Degraded) -> None:
        loader = TrainingLoader(
            uri, data, degraded=degraded, scale=4, batch_size=BATCH, rank=0, world_size=1, num_workers=0, seed=0
        )
        for _ in islice(loader, steps):
            pass

    samples = [members for name in shards.shard_names("train") for _, members in shards.samples(name)][: steps * BATCH]

    def bare() -> None:
        for first in range(0, len(samples), BATCH):
            images, conditions = [], []
            for members in samples[first : first + BATCH]:
                image = cv2.imdecode(
                    np.frombuffer(members["jpg" if "jpg" in members else "png"], np.uint8), cv2.IMREAD_COLOR_RGB
                )
                edges = cv2.imdecode(np.frombuffer(members["cond.png"], np.uint8), cv2.IMREAD_UNCHANGED)
                images.append(picture_tensor(np.asarray(image, dtype=np.uint8)))
                conditions.append(render_condition(StoredCondition(np.asarray(edges)), "sketch"))
            torch.stack(images), torch.stack(conditions)

    bare()
    read(None)
    online = DegradationConfig(variants=0)
    seconds = {"bare": best(bare), "loader": best(lambda: read(None)), "online": best(lambda: read(online), rounds=2)}
    each = {f"{name}_ms": round(1000 * value / len(samples), 2) for name, value in seconds.items()}
    return {**each, "share_of_bare_rate": round(seconds["bare"] / seconds["loader"], 3)}


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


def decoders() -> dict[str, Decoder]:
    found: dict[str, Decoder] = {
        "pillow": by_pillow,
        "pillow scaled": by_pillow_scaled,
        "opencv": by_opencv(cv2.IMREAD_COLOR),
        "opencv scaled": by_opencv(cv2.IMREAD_REDUCED_COLOR_2),
    }
    if importlib.util.find_spec("simplejpeg"):
        simplejpeg = importlib.import_module("simplejpeg")
        found["simplejpeg"] = lambda content: reduced(simplejpeg.decode_jpeg(content))
        found["simplejpeg scaled"] = lambda content: reduced(
            simplejpeg.decode_jpeg(content, min_height=SIDE, min_width=SIDE, min_factor=1)
        )
    if importlib.util.find_spec("turbojpeg"):
        turbo = importlib.import_module("turbojpeg")
        jpeg = turbo.TurboJPEG()
        found["turbojpeg"] = lambda content: reduced(jpeg.decode(content, pixel_format=turbo.TJPF_RGB))
    return found


def decoder_figures(decode: Decoder, contents: list[bytes]) -> dict[str, float]:
    """Milliseconds a picture, and mean PSNR in dB to Pillow's whole decoding."""
    seconds = best(lambda: [decode(content) for content in contents] and None)
    errors = [np.mean((decode(content).astype(float) - by_pillow(content)) ** 2) for content in contents]
    psnr = [10 * np.log10(255**2 / max(error, 1e-6)) for error in errors]
    return {"ms": round(1000 * seconds / len(contents), 2), "psnr_db": round(float(np.mean(psnr)), 1)}


if __name__ == "__main__":
    main()
