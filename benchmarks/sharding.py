"""Times sharding, degrading and planning.

  python benchmarks/sharding.py [--pictures 400] [--only squash degrade keys]

squash   640x480 JPEGs to 256x256 with detected sketches: processor time a picture, the least of three rounds.
degrade  four variants a picture, in one process and in two side by side: pictures a second.
keys     listing, planning and the manifest of so many pictures with label maps, none of which is read.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from piti.config import DataConfig, DegradationConfig
from piti.data.publishing import ShardWriter, write_manifest
from piti.data.sharding import plan_shards, shard_dataset
from piti.data.shards import ShardSet
from piti.data.sources import open_source
from piti.data.sources.bundled import PHOTOGRAPHS, _photograph
from piti.jobs.degrade import degrade_shard

SIDE = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--only", nargs="*", default=["squash", "degrade", "keys"], help="parts to measure")
    parser.add_argument("--keys", type=int, nargs="*", default=[10_000, 100_000])
    options = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if "squash" in options.only:
            print(f"squash: {squash(root, options.pictures):.2f} ms a picture")
        if "degrade" in options.only:
            print(f"degrade, pictures a second: {degrade_on_cores(root)}")
        for count in options.keys if "keys" in options.only else ():
            print(f"{count} keys: {planning(root / f'keys-{count}', count)}")


def squash(root: Path, count: int) -> float:
    """Milliseconds a picture."""
    write_pictures(root / "pictures", count)

    def shard() -> None:
        with tempfile.TemporaryDirectory(dir=root) as out:
            make_shards(root / "pictures", "squash", out)

    return 1000 * best_in_turns({"squash": shard})["squash"] / count


def write_pictures(folder: Path, count: int) -> None:
    """`count` different 640x480 JPEGs of quality 90."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        image = _photograph(PHOTOGRAPHS[number % len(PHOTOGRAPHS)]).image
        side = int(rng.integers(200, min(image.shape[:2])))
        top, left = (int(rng.integers(0, extent - side + 1)) for extent in image.shape[:2])
        crop = image[top : top + side * 3 // 4, left : left + side]
        picture = Image.fromarray(np.ascontiguousarray(crop)).resize((640, 480))
        picture.save(folder / f"{number:05d}.jpg", quality=90)


def make_shards(images: Path, geometry: str, uri: str, samples_per_shard: int = 200) -> DataConfig:
    """Shard a folder of pictures in this process; what was configured."""
    source = {"kind": "paired", "images": str(images)}
    settings = {"modality": "sketch", "image_size": SIDE, "samples_per_shard": samples_per_shard}
    data = DataConfig.model_validate({"source": source, "geometry": geometry, **settings})
    shard_dataset(data, uri)
    return data


def best_in_turns(contenders: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Processor seconds of each contender: the least of three rounds, after one that warms up."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(4):
        for name, contender in contenders.items():
            before = time.process_time()
            contender()
            taken[name].append(time.process_time() - before)
    return {name: min(seconds[1:]) for name, seconds in taken.items()}


def degrade_on_cores(root: Path) -> dict[str, float]:
    """Pictures a second in one process and in two, the best of three rounds each. Shards are small: no long last one."""
    uri = str(root / "few-shards")
    write_pictures(root / "few", 60)
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
