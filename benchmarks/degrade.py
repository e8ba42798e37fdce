"""Times L0 smoothing and BSR degradation on one core, beside the published code if that is at hand.

    python benchmarks/degrade.py [--published FOLDER] [--rounds 20] [--draws 150]

FOLDER of --published is PITI's `pretrained_diffusion/degradation`, a package that must import with the libraries
installed here (with SciPy 1.14 or later its uses of scipy.interpolate.interp2d, scipy.finfo and scipy.ndimage.filters
need replacing; draws that still crash are counted and left out). All contenders take turns within a round, and processor
time is counted, so that a busy machine disturbs little and all alike. Torch's CPU tensors take the numpy path; its own
path is what a GPU runs. Prints a table, and the same as one line of JSON.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import statistics
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


def main() -> None:
    parser = argparse.ArgumentParser(description="Times of the degradations, published code beside ours.")
    parser.add_argument("--published", type=Path, help="folder of PITI's pretrained_diffusion/degradation")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of L0 smoothing")
    parser.add_argument("--draws", type=int, default=150, help="draws of each BSR recipe")
    arguments = parser.parse_args()
    cpu = use_one_core()
    picture = cv2.resize(data.astronaut(), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    figures = {
        "cpu": cpu,
        "l0": time_l0(picture, arguments.published, arguments.rounds),
        "bsr": time_bsr(picture, arguments.published, arguments.draws),
    }
    print_table(figures)
    print(json.dumps(figures))


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


def time_l0(picture: NDArray[np.uint8], published: Path | None, rounds: int) -> dict[str, Any]:
    """Milliseconds a 256x256 picture; every contender smooths with the same lambda in the same round."""
    tensor = torch.from_numpy(picture)[None]
    contenders: dict[str, Callable[[float], float]] = {
        "ours (numpy)": lambda lam: milliseconds(lambda: l0_smooth(picture, lam)),
        "ours (torch's path, on the CPU)": lambda lam: milliseconds(lambda: smooth_batch(tensor, lam, 2.0)),
        f"scipy.fft: {NUM_FFT_STEPS} real FFTs and inverses": lambda _: milliseconds(scipy_ffts(picture)),
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
    for contender in contenders.values():
        contender(0.002)  # compiles, plans, warms caches
    rng = np.random.default_rng(0)
    lams = [float(lam) for lam in rng.uniform(0.0012, 0.004, rounds)]
    times = [{name: contender(lam) for name, contender in contenders.items()} for lam in lams]
    return {name: summary([entry[name] for entry in times]) for name in contenders}


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
    print()


if __name__ == "__main__":
    main()
