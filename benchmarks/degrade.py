"""Times L0 smoothing and BSR degradation on one core, beside the published code if that is at hand.

    python benchmarks/degrade.py [--published FOLDER] [--rounds 20] [--draws 150]

FOLDER of --published is PITI's `pretrained_diffusion/degradation`, a package that must import with the libraries
installed here (with SciPy 1.14 or later its uses of scipy.interpolate.interp2d, scipy.finfo and scipy.ndimage.filters
need replacing; draws that still crash are counted and left out). All contenders take turns, and processor time is
counted, so that a busy machine disturbs little and all alike. Prints milliseconds a 256x256 picture.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from skimage import data

from degradations import bsr_degrade, l0_smooth

SIDE = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", type=Path, help="folder of PITI's pretrained_diffusion/degradation")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of L0 smoothing")
    parser.add_argument("--draws", type=int, default=150, help="draws of each BSR recipe")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    picture = cv2.resize(data.astronaut(), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    report("L0 smoothing", l0_times(picture, arguments.published, arguments.rounds), statistics.median)
    report("BSR, scale 4", bsr_times(picture, arguments.published, arguments.draws), statistics.mean)


def report(what: str, times: dict[str, list[float]], average: Callable[[list[float]], float]) -> None:
    """The last column says how many times as long as the first contender the others take."""
    print(f"{what}: {average.__name__} of processor milliseconds a {SIDE}x{SIDE} picture on one core")
    own = average(next(iter(times.values())))
    for name, values in times.items():
        print(f"  {name:20}{average(values):10.2f}{average(values) / own:8.2f}x   {len(values)} pictures")


def import_published(folder: Path, name: str) -> Any:
    sys.path.insert(0, str(folder.resolve().parent))
    return importlib.import_module(f"{folder.resolve().name}.{name}")


def milliseconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return 1000 * (time.process_time() - start)


def l0_times(picture: NDArray[np.uint8], published: Path | None, rounds: int) -> dict[str, list[float]]:
    """All contenders smooth with the same lambda in the same round; the first round compiles and warms caches."""
    function = import_published(published, "l0smooth").l0_smooth if published else None
    times: dict[str, list[float]] = {"ours": []} | ({"published": []} if function else {})
    for lam in (0.002, *np.random.default_rng(0).uniform(0.0012, 0.004, rounds)):
        times["ours"].append(milliseconds(lambda lam=lam: l0_smooth(picture, float(lam))))
        if function:
            drawn, np.random.uniform = np.random.uniform, lambda _low, _high, lam=lam: 1000 * lam  # it draws by itself
            try:
                times["published"].append(milliseconds(lambda: function(picture)))
            finally:
                np.random.uniform = drawn
    return {name: values[1:] for name, values in times.items()}


def bsr_times(picture: NDArray[np.uint8], published: Path | None, draws: int) -> dict[str, list[float]]:
    """Draw and application together."""
    function = import_published(published, "bsrgan_light").degradation_bsrgan_variant if published else None
    times: dict[str, list[float]] = {"ours, light": [], "ours, full": []} | (
        {"published, light": []} if function else {}
    )
    crashed: Counter[str] = Counter()
    rng = np.random.default_rng(0)
    random.seed(0)
    np.random.seed(0)
    for _ in range(draws):
        times["ours, light"].append(milliseconds(lambda: bsr_degrade(picture, 4, rng, "light")))
        times["ours, full"].append(milliseconds(lambda: bsr_degrade(picture, 4, rng, "full")))
        if function:
            try:
                times["published, light"].append(milliseconds(lambda: function(picture, 4)))
            except Exception as error:  # noqa: BLE001 - foreign code; every crash is counted and shown
                crashed[repr(error)] += 1
    for error, count in crashed.items():
        print(f"{count} draws of the published code crashed: {error}")
    return times


if __name__ == "__main__":
    main()
