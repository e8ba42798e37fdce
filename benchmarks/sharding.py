"""Times sharding and degrading on one core and two, beside loops that do only the unavoidable part.

    python benchmarks/sharding.py [--pictures 400] [--degraded 60] [--keys 1000 10000 100000] [--only kept squash degrade disk keys] [--json FILE]

Pictures are 640x480 JPEGs cut from scikit-image's photographs. Processor time is counted (user and system, of all
processes of a contender), except for the step from one core to two, which is about elapsed time: run that on an idle
machine. Prints a table, and the same as one line of JSON.

  kept     geometry random: files keep their bytes, sketches are detected.
  squash   geometry squash at 256x256: resized and encoded anew, sketches are detected.
           Beside both, copy: read, hash, write, which is what a disk and the hash can do (here from the page cache);
           and work: the same libraries' decoding, resizing, detecting, encoding, then hash and write.
  disk     elapsed time of two processes (and of one), files read from the disk and shards flushed to it, beside as many
           processes that read, hash and write the same files.
  keys     memory and time that listing, planning and writing the manifest take, by number of pictures in the source
           (listed, not read), each with a condition. Slow from a million on: --keys 1000000 makes two million files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from piti.config import DataConfig, DegradationConfig
from piti.data.geometry import resize_photograph
from piti.data.publishing import ShardWriter, write_manifest
from piti.data.sharding import ShardPlan, encode_condition_png, encode_png, plan_shards, write_shard
from piti.data.shards import ShardSet
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
    parser.add_argument(
        "--only", nargs="*", default=["kept", "squash", "degrade", "keys", "disk"], help="parts to measure"
    )
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
        if "disk" in options.only:
            figures["disk"] = on_the_disk(root, files)
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


def bare_copy(files: list[Path], target: Path, durable: bool = False) -> None:
    """Read, hash, write: what a disk and a hash can do."""
    with open(target, "wb") as stream:
        for path in files:
            content = path.read_bytes()
            hashlib.sha256(content).digest()
            stream.write(content)
        if durable:
            stream.flush()
            os.fsync(stream.fileno())


def bare_work(geometry: str) -> Bare:
    """The same libraries' calls, without anything around them."""

    def work(files: list[Path], target: Path) -> None:
        with open(target, "wb") as stream:
            for path in files:
                content = path.read_bytes()
                image = simplejpeg.decode_jpeg(content)
                if geometry != "random":
                    image = resize_photograph(image, SIDE)
                    options = [cv2.IMWRITE_JPEG_QUALITY, 95]
                    content = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes()
                for part in (content, encode_condition_png(detect_edges(image), "sketch")):
                    hashlib.sha256(part).digest()
                    stream.write(part)

    return work


def on_the_disk(root: Path, files: list[Path]) -> dict[str, Any]:
    """Elapsed milliseconds a picture, files not in the page cache before and everything on the disk at the end.

    `masks`: pictures with label maps, bytes kept, every file decoded; `headers`: the same, none decoded; `sketches`:
    detected in pictures that are resized. Beside them as many processes that read, hash and write the same files,
    each its share into one file: `copy` pictures and label maps, `copy_pictures` pictures alone. `write` is the shards
    alone, `whole` with planning before and the manifest after; shares are of the copy's rate. The best of four rounds
    in which all take turns, after one that warms up.
    """
    labels = root / "labels"
    labels.mkdir()
    for path in files:
        grey = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2GRAY)
        areas = (cv2.GaussianBlur(grey, (0, 0), 8) // 16 * 11).astype(np.uint8)  # 16 labels in blobs
        (labels / f"{path.stem}.png").write_bytes(encode_png(areas))
    pairs = [part for path in files for part in (path, labels / f"{path.stem}.png")]
    source = {"kind": "paired", "images": str(files[0].parent), "conditions": str(labels)}
    masks = {"source": source, "modality": "mask", "num_classes": 182, "geometry": "random", "samples_per_shard": 200}
    headers = {"headers": DataConfig.model_validate({**masks, "check": "headers"})}
    others = {"masks": DataConfig.model_validate(masks), "sketches": data_of(files[0].parent, "squash")}
    return {
        "two_processes": disk_times(root / "two", 2, headers | others, pairs, files),
        "one_process": disk_times(root / "one", 1, headers, pairs, files),
    }


def disk_times(
    root: Path, processes: int, datas: dict[str, DataConfig], pairs: list[Path], files: list[Path]
) -> dict[str, float]:
    """See `on_the_disk`."""
    root.mkdir()
    seconds: dict[str, list[float]] = {}
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for number in range(5):
            for name, copied in (("copy", pairs), ("copy_pictures", files)):
                evict(pairs)
                before = time.perf_counter()
                share = len(copied) // processes
                parts = [
                    (copied[place * share : (place + 1) * share], root / f"copy-{place}", True)
                    for place in range(processes)
                ]
                pool.starmap(bare_copy, parts, 1)
                seconds.setdefault(name, []).append(time.perf_counter() - before)
            for name, data in datas.items():
                evict(pairs)
                before = time.perf_counter()
                plans = plan_shards(open_source(data), data, 0)
                out, planned = str(root / f"{name}-{number}"), time.perf_counter()
                for _ in pool.imap(partial(write_one, data=data, out=out), plans):
                    pass
                written = time.perf_counter()
                write_manifest(out, list(plans.digests), {})
                seconds.setdefault(f"{name}_write", []).append(written - planned)
                seconds.setdefault(f"{name}_whole", []).append(time.perf_counter() - before)
    each = {name: 1000 * min(values[1:]) / len(files) for name, values in seconds.items()}
    shares = {
        f"{name}_{part}_share": each["copy_pictures" if name == "sketches" else "copy"] / each[f"{name}_{part}"]
        for name in datas
        for part in ("write", "whole")
    }
    return {f"{name}_ms": round(value, 3) for name, value in each.items()} | {
        name: round(share, 3) for name, share in shares.items()
    }


def evict(files: list[Path]) -> None:
    """Out of the page cache, once they are on the disk."""
    os.sync()
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def write_one(plan: ShardPlan, data: DataConfig, out: str) -> None:
    write_shard(plan, data, out)


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
    """Memory of listing, planning and the manifest, each kind measured in a process of its own."""
    folder = root / f"keys-{count}"
    for kind, suffix in (("images", "jpg"), ("conditions", "png")):
        for number in range(count):
            path = folder / kind / f"{number // 1000:03d}" / f"{number:06d}.{suffix}"
            if number % 1000 == 0:
                path.parent.mkdir(parents=True)
            path.touch()
    figures: dict[str, float] = {}
    for measure in (resident_growth, allocated_peak):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            figures |= pool.apply(measure, (str(folder),))
    return figures


def resident_growth(folder: str) -> dict[str, float]:
    """MiB by which the process's largest resident size grows, after ten keys have loaded what is needed; and seconds."""
    plan_and_record(few_of(folder), f"{folder}/warm")
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    plan_and_record(folder, f"{folder}/out-resident")
    after = resource.getrusage(resource.RUSAGE_SELF)
    growth = (after.ru_maxrss - before.ru_maxrss) / 1024
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    elapsed = time.perf_counter() - started
    return {"resident_mib": round(growth, 1), "processor_s": round(processor, 2), "elapsed_s": round(elapsed, 2)}


def allocated_peak(folder: str) -> dict[str, float]:
    """MiB that Python and NumPy allocate at most."""
    plan_and_record(few_of(folder), f"{folder}/warm-traced")
    tracemalloc.start()
    plan_and_record(folder, f"{folder}/out-traced")
    return {"allocated_mib": round(tracemalloc.get_traced_memory()[1] / 2**20, 1)}


def few_of(folder: str) -> str:
    """Ten keys beside the many."""
    for kind, suffix in (("images", "jpg"), ("conditions", "png")):
        few = Path(folder) / "few" / kind
        few.mkdir(parents=True, exist_ok=True)
        for number in range(10):
            (few / f"{number}.{suffix}").touch()
    return f"{folder}/few"


def plan_and_record(folder: str, out: str) -> None:
    """What the shard job does but for reading pictures, which are recorded as rejected."""
    source = {"kind": "paired", "images": f"{folder}/images", "conditions": f"{folder}/conditions"}
    settings = {"source": source, "modality": "mask", "num_classes": 182, "samples_per_shard": 1000}
    data = DataConfig.model_validate(settings)
    plans = plan_shards(open_source(data), data, 0)
    for plan in plans:
        with ShardWriter(out, plan.name, plan.plan) as writer:
            for item in plan.items:
                writer.reject(item.key, "not read", source=item.origin)
            writer.publish()
    write_manifest(out, list(plans.digests), {})


if __name__ == "__main__":
    main()
