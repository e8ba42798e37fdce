"""Times L0 smoothing and BSR degradation on one core, beside the published code if that is at hand.

    python benchmarks/degrade.py [--published FOLDER] [--contrib FOLDER] [--rounds 20] [--draws 150] [--json FILE]

FOLDER of --published is PITI's `pretrained_diffusion/degradation`, a package that must import with the libraries
installed here (with SciPy 1.14 or later its uses of scipy.interpolate.interp2d, scipy.finfo and
scipy.ndimage.filters need replacing; draws that still crash are counted and left out). FOLDER of --contrib holds
opencv-contrib, as `pip install --target FOLDER --no-deps opencv-contrib-python-headless` makes it; it is timed in a
process of its own. All contenders take turns within a round, and processor time is counted, so that a busy machine
disturbs little and all alike. Torch's CPU tensors take the numpy path; its own path is what a GPU runs. Last, that path
is timed in batches on one thread and two: elapsed time, for an idle machine.
Prints a table, and the same as one line of JSON.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import scipy.fft
import torch
from numpy.typing import NDArray
from skimage import data

from degradations import bsr_degrade, l0_smooth
from degradations.l0 import smooth_batch

SIDE = 256
NUM_FFT_STEPS = 26  # steps of L0 smoothing at the smallest published lambda
CONTRIB = """
import cv2, json, sys, time
cv2.setNumThreads(1)
picture = cv2.imread(sys.argv[1])
cv2.ximgproc.l0Smooth(picture, None, 0.002, 2.0)
print("ready", flush=True)
for line in sys.stdin:
    start = time.process_time()
    cv2.ximgproc.l0Smooth(picture, None, float(line), 2.0)
    print(1000 * (time.process_time() - start), flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Times of the degradations, published code beside ours.")
    parser.add_argument("--published", type=Path, help="folder of PITI's pretrained_diffusion/degradation")
    parser.add_argument("--contrib", type=Path, help="folder with opencv-contrib-python-headless")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of L0 smoothing")
    parser.add_argument("--draws", type=int, default=150, help="draws of each BSR recipe")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else set()
    cpu = use_one_core()
    picture = cv2.resize(data.astronaut(), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    figures = {
        "cpu": cpu,
        "l0": time_l0(picture, arguments.published, arguments.contrib, arguments.rounds),
        "bsr": time_bsr(picture, arguments.published, arguments.draws),
        "l0_torch": time_l0_torch(picture, cores),
    }
    print_table(figures)
    print(json.dumps(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def use_one_core() -> str:
    """Pin this process, and what it starts, to one core; the processor's name."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].split(":")[1].strip()


def import_published(folder: Path, name: str) -> Any:
    sys.path.insert(0, str(folder.resolve().parent))
    return importlib.import_module(f"{folder.resolve().name}.{name}")


def time_l0(picture: NDArray[np.uint8], published: Path | None, contrib: Path | None, rounds: int) -> dict[str, Any]:
    """Milliseconds a 256x256 picture; every contender smooths with the same lambda in the same round."""
    tensor = torch.from_numpy(picture)[None]
    contenders: dict[str, Callable[[float], float]] = {
        "ours (numpy)": lambda lam: milliseconds(lambda: l0_smooth(picture, lam)),
        "ours (torch's path, on the CPU)": lambda lam: milliseconds(lambda: smooth_batch(tensor, lam, 2.0)),
        f"scipy.fft: {NUM_FFT_STEPS} real FFTs and inverses": lambda _: milliseconds(scipy_ffts(picture)),
        f"OpenCV: {NUM_FFT_STEPS} real FFTs and inverses": lambda _: milliseconds(opencv_ffts(picture)),
    }
    if published:
        function = import_published(published, "l0smooth").l0_smooth

        def time_published(lam: float) -> float:
            drawn, np.random.uniform = np.random.uniform, lambda _low, _high: 1000 * lam  # it draws its lambda itself
            try:
                return milliseconds(lambda: function(picture))
            finally:
                np.random.uniform = drawn

        contenders["published"] = time_published
    if contrib:
        contenders["opencv-contrib"] = contrib_timer(picture, contrib)
    for contender in contenders.values():
        contender(0.002)  # compiles, plans, warms caches
    rng = np.random.default_rng(0)
    lams = [float(lam) for lam in rng.uniform(0.0012, 0.004, rounds)]
    times = [{name: contender(lam) for name, contender in contenders.items()} for lam in lams]
    return {name: summary([entry[name] for entry in times]) for name in contenders}


def time_l0_torch(picture: NDArray[np.uint8], cores: set[int]) -> dict[str, float]:
    """Elapsed milliseconds a picture of torch's batched path, by number of threads, and of numpy's on one core.

    Batches of 8 at lambda 0.002; least of five rounds, in which all take turns. Leaves this process on all `cores`.
    """
    if cores:
        os.sched_setaffinity(0, cores)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = torch.from_numpy(np.stack([np.roll(picture, 16 * shift, axis=0) for shift in range(8)])).to(device)
    pictures = batch.cpu().numpy()
    times: dict[str, list[float]] = {}
    for number in range(6):
        for threads in (1, 2):
            torch.set_num_threads(threads)
            times.setdefault(f"torch on {device}, {threads} threads", []).append(
                elapsed(lambda: smooth_batch(batch, 0.002, 2.0).cpu())
            )
        times.setdefault("numpy, one core", []).append(elapsed(lambda: [l0_smooth(one, 0.002) for one in pictures]))
        if number == 0:
            times.clear()  # what is compiled and planned
    return {name: round(min(values) / len(batch), 2) for name, values in times.items()}


def elapsed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def milliseconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return 1000 * (time.process_time() - start)


def scipy_ffts(picture: NDArray[np.uint8]) -> Callable[[], None]:
    planes = np.ascontiguousarray(np.moveaxis(picture, -1, 0), dtype=np.float32)

    def call() -> None:
        for _ in range(NUM_FFT_STEPS):
            scipy.fft.irfft2(scipy.fft.rfft2(planes), s=planes.shape[1:])

    return call


def opencv_ffts(picture: NDArray[np.uint8]) -> Callable[[], None]:
    planes = np.ascontiguousarray(np.moveaxis(picture, -1, 0), dtype=np.float32)
    spectrum, back = np.empty_like(planes[0]), np.empty_like(planes[0])

    def call() -> None:
        for _ in range(NUM_FFT_STEPS):
            for plane in planes:
                cv2.dft(plane, spectrum)
                cv2.dft(spectrum, back, flags=cv2.DFT_INVERSE)

    return call


def contrib_timer(picture: NDArray[np.uint8], folder: Path) -> Callable[[float], float]:
    file = Path(folder) / "benchmark-picture.png"
    cv2.imwrite(str(file), picture)
    environment = {**os.environ, "PYTHONPATH": str(folder.resolve())}
    command = [sys.executable, "-c", CONTRIB, str(file)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    source, sink = child.stdout, child.stdin
    if source is None or sink is None or source.readline() != "ready\n":
        raise SystemExit(f"{folder} has no usable opencv-contrib: see its error above")

    def ask(lam: float) -> float:
        sink.write(f"{lam}\n")
        sink.flush()
        return float(source.readline())

    return ask


def time_bsr(picture: NDArray[np.uint8], published: Path | None, draws: int) -> dict[str, Any]:
    """Milliseconds a 256x256 picture at scale 4, draw and application together."""
    rng = np.random.default_rng(0)
    ours: dict[str, list[float]] = {"ours, light": [], "ours, full": []}
    theirs: list[float] = []
    crashed: dict[str, int] = {}
    function = import_published(published, "bsrgan_light").degradation_bsrgan_variant if published else None
    random.seed(0)
    np.random.seed(0)
    for _ in range(draws):
        ours["ours, light"].append(milliseconds(lambda: bsr_degrade(picture, 4, rng, "light")))
        ours["ours, full"].append(milliseconds(lambda: bsr_degrade(picture, 4, rng, "full")))
        if function:
            try:
                theirs.append(milliseconds(lambda: function(picture, 4)))
            except Exception as error:  # noqa: BLE001 - foreign code; every crash is counted and shown
                crashed[repr(error)] = crashed.get(repr(error), 0) + 1
    table = {name: summary(values) for name, values in ours.items()}
    if theirs:
        table["published, light"] = summary(theirs) | {"crashed": crashed}
    return table


def summary(values: list[float]) -> dict[str, Any]:
    return {
        "mean_ms": round(statistics.mean(values), 3),
        "median_ms": round(statistics.median(values), 3),
        "min_ms": round(min(values), 3),
        "count": len(values),
    }


def print_table(figures: dict[str, Any]) -> None:
    """The last column says how many times as long as ours a contender takes (L0: medians, BSR: means)."""
    for part, statistic, own in (("l0", "median_ms", "ours (numpy)"), ("bsr", "mean_ms", "ours, light")):
        print(f"\n{part}, {SIDE}x{SIDE}, processor milliseconds a picture on one core of {figures['cpu']}")
        print(f"{'':40}{'mean':>10}{'median':>10}{'min':>10}{'x ours':>10}")
        for name, row in figures[part].items():
            ratio = row[statistic] / figures[part][own][statistic]
            print(f"{name:40}{row['mean_ms']:10.2f}{row['median_ms']:10.2f}{row['min_ms']:10.2f}{ratio:10.2f}")
            for error, count in row.get("crashed", {}).items():
                print(f"    {count} draws crashed: {error}")
    print(f"\nL0 in batches of 8, elapsed milliseconds a picture: {figures['l0_torch']}")
    print()


if __name__ == "__main__":
    main()
