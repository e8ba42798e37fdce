"""Times sharding and degrading beside bare loops of the same libraries, and tells what planning takes.

    python benchmarks/sharding.py [--pictures 400] [--only kept squash degrade keys]

  kept     640x480 JPEGs that keep their bytes (geometry random), sketches detected.
  squash   the same, resized to 256x256.
  degrade  four variants a picture, in one process and in two side by side: pictures a second.
  keys     listing, planning and the manifest of so many pictures with label maps, none of which is read.

`kept` and `squash`: processor time a picture on one core, the least of three rounds in which all take turns. `work` is a
loop of the same calls (decode, resize, sketch, encode, hash, write), `copy` reads, hashes and writes. Prints JSON, too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from piti.config import DataConfig, DegradationConfig
from piti.data.publishing import ShardWriter, write_manifest
from piti.data.resizing import resize_photograph
from piti.data.sharding import encode_condition_png, plan_shards, shard_dataset
from piti.data.shards import ShardSet
from piti.data.sketch import detect_edges
from piti.data.sources import open_source
from piti.data.sources.bundled import PHOTOGRAPHS, _photograph
from piti.jobs.degrade import degrade_shard

SIDE = 256


def main() -> None:
    parser = argparse.ArgumentParser(description="Times of sharding and degrading.")
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--only", nargs="*", default=["kept", "squash", "degrade", "keys"], help="parts to measure")
    parser.add_argument("--keys", type=int, nargs="*", default=[10_000, 100_000])
    options = parser.parse_args()
    cv2.setNumThreads(1)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        files = write_pictures(root / "pictures", options.pictures)
        for name, geometry in (("kept", "random"), ("squash", "squash")):
            if name in options.only:
                figures[name] = compare(root, files, geometry)
        if "degrade" in options.only:
            figures["degrade"] = degrade_on_cores(root)
        if "keys" in options.only:
            figures["keys"] = {count: planning(root / f"keys-{count}", count) for count in options.keys}
    for name, value in figures.items():
        print(f"{name:8s} {value}")
    print(json.dumps(figures))


def write_pictures(folder: Path, count: int) -> list[Path]:
    """`count` different 640x480 JPEGs of quality 90."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        image = _photograph(PHOTOGRAPHS[number % len(PHOTOGRAPHS)]).image
        side = int(rng.integers(200, min(image.shape[:2])))
        top, left = (int(rng.integers(0, extent - side + 1)) for extent in image.shape[:2])
        crop = image[top : top + side * 3 // 4, left : left + side]
        paths.append(folder / f"{number:05d}.jpg")
        Image.fromarray(np.ascontiguousarray(crop)).resize((640, 480)).save(paths[-1], quality=90)
    return paths


def make_shards(images: Path, geometry: str, uri: str, samples_per_shard: int = 200) -> DataConfig:
    """Shard a folder of pictures in this process; what was configured."""
    source = {"kind": "paired", "images": str(images)}
    settings = {"modality": "sketch", "image_size": SIDE, "samples_per_shard": samples_per_shard}
    data = DataConfig.model_validate({"source": source, "geometry": geometry, **settings})
    shard_dataset(data, uri)
    return data


def best_in_turns(contenders: dict[str, Callable[[], object]], rounds: int = 3) -> dict[str, float]:
    """Processor seconds of each contender: the least of so many rounds, after one that warms up."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, contender in contenders.items():
            before = time.process_time()
            contender()
            taken[name].append(time.process_time() - before)
    return {name: min(seconds[1:]) for name, seconds in taken.items()}


def compare(root: Path, files: list[Path], geometry: str) -> dict[str, float]:
    """Milliseconds a picture of sharding and of each loop, and the shares of the loops' rates."""

    def shard() -> None:
        with tempfile.TemporaryDirectory(dir=root) as out:
            make_shards(root / "pictures", geometry, out)

    contenders = {
        "ours": shard,
        "work": lambda: write_loop(files, root / "loop", geometry),
        "copy": lambda: write_loop(files, root / "loop", None),
    }
    seconds = best_in_turns(contenders)
    each = {f"{name}_ms": round(1000 * value / len(files), 2) for name, value in seconds.items()}
    return each | {f"share_of_{name}_rate": round(seconds[name] / seconds["ours"], 3) for name in ("work", "copy")}


def write_loop(files: list[Path], target: Path, geometry: str | None) -> None:
    """The same libraries' calls, without anything around them; None: nothing but reading, hashing and writing."""
    with open(target, "wb") as stream:
        for path in files:
            parts = [path.read_bytes()]
            if geometry is not None:
                image = simplejpeg.decode_jpeg(parts[0])
                if geometry != "random":
                    image = resize_photograph(image, SIDE)
                    options = [cv2.IMWRITE_JPEG_QUALITY, 95]
                    parts = [cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes()]
                parts.append(encode_condition_png(detect_edges(image), "sketch"))
            for part in parts:
                hashlib.sha256(part).digest()
                stream.write(part)


def degrade_on_cores(root: Path, count: int = 60) -> dict[str, float]:
    """Pictures a second in one process and in two, the best of three rounds each. Shards are small: no long last one."""
    uri = str(root / "few-shards")
    write_pictures(root / "few", count)
    data = make_shards(root / "few", "squash", uri, samples_per_shard=2)
    names = ShardSet(uri).shard_names("train")
    rates = {1: 0.0, 2: 0.0}
    for number in range(3):
        for processes in rates:
            out = str(root / f"low-{processes}-{number}")
            with multiprocessing.get_context("spawn").Pool(processes) as pool:
                pool.starmap(degrade, [(uri, names[0], f"{out}-warm", data)] * 2 * processes, 1)
                before = time.perf_counter()
                pool.starmap(degrade, [(uri, name, out, data) for name in names], 1)
                seconds = time.perf_counter() - before
            rates[processes] = max(rates[processes], ShardSet(uri).num_samples("train") / seconds)
    return {"one_core": round(rates[1], 1), "two_cores": round(rates[2], 1), "speedup": round(rates[2] / rates[1], 2)}


def degrade(uri: str, name: str, out: str, data: DataConfig) -> None:
    degrade_shard(uri, name, out, "benchmark", data, DegradationConfig(variants=4), 4, 0)


def planning(folder: Path, count: int) -> dict[str, float]:
    """In a process of its own: MiB by which it grows, bytes a key, and processor seconds."""
    for kind, suffix in (("images", "jpg"), ("conditions", "png")):
        for number in range(count):
            path = folder / kind / f"{number // 1000:03d}" / f"{number:06d}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        growth_bytes, seconds = pool.apply(plan_and_record, (str(folder),))
    return {"mib": round(growth_bytes / 2**20, 1), "bytes_a_key": round(growth_bytes / count), "s": round(seconds, 2)}


def plan_and_record(folder: str) -> tuple[int, float]:
    """What the shard job does but for reading pictures, which are recorded as rejected."""
    source = {"kind": "paired", "images": f"{folder}/images", "conditions": f"{folder}/conditions"}
    settings = {"source": source, "modality": "mask", "num_classes": 182, "samples_per_shard": 1000}
    data, before = DataConfig.model_validate(settings), resource.getrusage(resource.RUSAGE_SELF)
    plans = plan_shards(open_source(data), data, 0)
    for plan in plans:
        with ShardWriter(f"{folder}/out", plan.name, plan.plan) as writer:
            for item in plan.items:
                writer.reject(item.key, "not read", source=item.origin)
            writer.publish()
    write_manifest(f"{folder}/out", list(plans.digests), {})
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return 1024 * (after.ru_maxrss - before.ru_maxrss), seconds


if __name__ == "__main__":
    main()
