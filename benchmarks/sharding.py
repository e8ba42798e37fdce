"""Times sharding and degrading on one core and two, beside loops that do only the unavoidable part.

    python benchmarks/sharding.py [--pictures 400] [--degraded 60] [--keys 1000 10000 100000] [--only kept squash degrade keys] [--json FILE]

Pictures are 640x480 JPEGs cut from scikit-image's photographs. Processor time is counted (user and system, of all
processes of a contender), except for the step from one core to two, which is about elapsed time: run that on an idle
machine. Prints a table, and the same as one line of JSON.

  kept     geometry random: files keep their bytes, sketches are detected.
  squash   geometry squash at 256x256: resized and encoded anew, sketches are detected.
           Beside both, copy: read, hash, write, which is what a disk and the hash can do (here from the page cache);
           and work: the same libraries' decoding, resizing, detecting, encoding, then hash and write.
  keys     memory that planning takes, by number of pictures in the source (listed, not read).
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import io
import json
import multiprocessing
import os
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from piti.config import DataConfig, DegradationConfig
from piti.data.sharding import encode_png, plan_shards, write_shard
from piti.data.shards import ShardSet, write_manifest
from piti.data.sketch import detect_edges
from piti.data.sources import open_source
from piti.data.sources.bundled import PHOTOGRAPHS, _photograph
from piti.jobs.degrade import degrade_shard

SIDE = 256
Bare = Callable[[list[Path], Path], None]


def main() -> None:
    parser = argparse.ArgumentParser(description="Times of sharding and degrading.")
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--degraded", type=int, default=60, help="pictures to degrade on one core, then on two")
    parser.add_argument("--only", nargs="*", default=["kept", "squash", "degrade", "keys"], help="parts to measure")
    parser.add_argument("--keys", type=int, nargs="*", default=[1000, 10_000, 100_000])
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    figures: dict[str, Any] = {"load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        files = write_pictures(root / "pictures", options.pictures)
        if "kept" in options.only:
            figures["kept"] = compare(root, files, "random", {"copy": bare_copy, "work": bare_work("random")})
        if "squash" in options.only:
            figures["squash"] = compare(root, files, "squash", {"copy": bare_copy, "work": bare_work("squash")})
        if "degrade" in options.only:
            figures["degrade"] = degrade_on_cores(root, options.degraded)
        if "keys" in options.only:
            figures["keys"] = {count: planning_memory(root, count) for count in options.keys}
    for name, value in figures.items():
        print(f"{name:8s} {value}")
    print(json.dumps(figures))
    if options.json:
        options.json.write_text(json.dumps(figures) + "\n")


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


def data_of(images: Path, geometry: str, samples_per_shard: int = 200) -> DataConfig:
    return DataConfig.model_validate(
        {
            "source": {"kind": "paired", "images": str(images)},
            "modality": "sketch",
            "geometry": geometry,
            "image_size": SIDE,
            "samples_per_shard": samples_per_shard,
        }
    )


def processor_seconds(work: Callable[[], None]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def compare(root: Path, files: list[Path], geometry: str, bares: dict[str, Bare]) -> dict[str, float]:
    """Milliseconds a picture of sharding and of each bare loop, and the shares of their rates.

    Least of three rounds in which all take turns, after one that warms up.
    """
    data = data_of(root / "pictures", geometry)
    taken: dict[str, list[float]] = {}

    def shard(out: Path) -> None:
        plans = plan_shards(open_source(data), data, 0)
        for plan in plans:
            write_shard(plan, data, str(out))
        about = {name: getattr(data, name) for name in ("modality", "num_classes", "image_size", "geometry")}
        write_manifest(str(out), list(plans.digests), about)

    for number in range(4):
        for name, bare in bares.items():
            work = partial(bare, files, root / f"{name}-{geometry}")
            taken.setdefault(name, []).append(processor_seconds(work))
        taken.setdefault("ours", []).append(processor_seconds(partial(shard, root / f"shards-{geometry}-{number}")))
    least = {name: min(seconds[1:]) for name, seconds in taken.items()}
    each = {f"{name}_ms": round(1000 * seconds / len(files), 2) for name, seconds in least.items()}
    return each | {f"share_of_{name}_rate": round(least[name] / least["ours"], 3) for name in bares}


def bare_copy(files: list[Path], target: Path) -> None:
    """Read, hash, write: what a disk and a hash can do."""
    with open(target, "wb") as stream:
        for path in files:
            content = path.read_bytes()
            hashlib.sha256(content).digest()
            stream.write(content)


def bare_work(geometry: str) -> Bare:
    """The same libraries' calls, without anything around them."""

    def work(files: list[Path], target: Path) -> None:
        with open(target, "wb") as stream:
            for path in files:
                content = path.read_bytes()
                with Image.open(io.BytesIO(content)) as picture:
                    whole = geometry == "random"
                    image = np.asarray(picture if whole else picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
                if not whole:
                    options = [cv2.IMWRITE_JPEG_QUALITY, 95]
                    content = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes()
                for part in (content, encode_png(detect_edges(image))):
                    hashlib.sha256(part).digest()
                    stream.write(part)

    return work


def degrade_on_cores(root: Path, count: int) -> dict[str, float]:
    """Pictures a second, 4 variants each, in one process and in two side by side: the best of three rounds each."""
    images = root / "few"
    write_pictures(images, count)
    data = data_of(images, "squash", samples_per_shard=max(1, count // 32))  # small: no core waits long for the last
    uri = str(root / "few-shards")
    plans = plan_shards(open_source(data), data, 0)
    for plan in plans:
        write_shard(plan, data, uri)
    write_manifest(uri, list(plans.digests), {})
    names = ShardSet(uri).shard_names("train")
    rates: dict[int, float] = {1: 0.0, 2: 0.0}
    pictures = sum(ShardSet(uri).stats[name].num_samples for name in names)
    for number in range(3):
        for processes in rates:
            out = str(root / f"low-{processes}-{number}")
            with multiprocessing.get_context("spawn").Pool(processes) as pool:
                warm = [(uri, names[0], f"{out}-warm-{place}", data) for place in range(2 * processes)]
                pool.starmap(degrade, warm, 1)
                before = time.perf_counter()
                pool.starmap(degrade, [(uri, name, out, data) for name in names], 1)
                rates[processes] = max(rates[processes], pictures / (time.perf_counter() - before))
    return {
        "one_core_per_s": round(rates[1], 1), "two_cores_per_s": round(rates[2], 1),
        "speedup": round(rates[2] / rates[1], 2),
    }  # fmt: skip


def degrade(uri: str, name: str, out: str, data: DataConfig) -> None:
    cv2.setNumThreads(1)
    degrade_shard(uri, name, out, "benchmark", data, DegradationConfig(variants=4), 4, 0)


def planning_memory(root: Path, count: int) -> dict[str, float]:
    """Memory of planning in a process of its own; see `plan_and_measure`."""
    folder = root / f"keys-{count}"
    for number in range(count):
        path = folder / f"{number // 1000:03d}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(plan_and_measure, (str(folder),))


def plan_and_measure(folder: str) -> dict[str, float]:
    """MiB that Python and NumPy allocate: at most while planning, and for the finished plan."""
    data = data_of(Path(folder), "squash", samples_per_shard=1000)
    source = open_source(data)
    tracemalloc.start()
    plans = plan_shards(source, data, 0)
    peak = tracemalloc.get_traced_memory()[1]
    gc.collect()
    kept = tracemalloc.get_traced_memory()[0]
    del plans
    return {"peak_mib": round(peak / 2**20, 1), "plan_mib": round(kept / 2**20, 2)}


if __name__ == "__main__":
    main()
