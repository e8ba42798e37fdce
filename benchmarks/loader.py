"""Times the loader beside bare loops over the same files.

    python benchmarks/loader.py [--pictures 300] [--only squash random]

Processor time a picture on one thread, the least of three rounds in which all take turns. Sketches of 640x480 JPEGs:

  squash   shards at training size, 256x256.
  random   shards of kept JPEGs, of which random squares are cut and resized.

Loops beside the loader, by the loader's own libraries, over files in memory:
  pictures    decode the shards' JPEGs and nothing else; where random, crop and resize the same squares.
  conditions  the same, and the conditions, rendered, as float planes in a batch: what a network needs.
  originals   decode the original JPEGs and resize them to training size; no conditions.
`online` is the loader that degrades each picture as it is read (`degradation.variants: 0`).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from sharding import SIDE, best_in_turns, make_shards, write_pictures

from piti.config import DegradationConfig
from piti.data.conditions import StoredCondition, render_condition
from piti.data.decoding import decode_condition, decode_image
from piti.data.examples import Degraded, chances_of
from piti.data.loader import TrainingLoader
from piti.data.resizing import CropBox, crop_photograph, resize_edges, resize_photograph
from piti.data.shards import ShardSet

BATCH = 10
Sample = tuple[dict[str, bytes], CropBox | None]  # files of a sample, and the square of it that is used


def main() -> None:
    parser = argparse.ArgumentParser(description="Times of the loader.")
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--only", nargs="*", default=["squash", "random"], help="parts to measure")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder) / "pictures", options.pictures)
        figures = {geometry: loader_figures(Path(folder), geometry) for geometry in options.only}
    for name, value in figures.items():
        print(f"{name:10s} {value}")
    print(json.dumps(figures))


def loader_figures(root: Path, geometry: str) -> dict[str, float]:
    """Milliseconds a picture of the loader and of the loops, and the shares of the loops' rates."""
    uri = str(root / f"shards-{geometry}")
    data = make_shards(root / "pictures", geometry, uri)
    shards = ShardSet(uri)
    steps = shards.num_samples("train") // BATCH

    def load(degraded: Degraded) -> None:
        settings: dict[str, Any] = {"rank": 0, "world_size": 1, "num_workers": 0, "seed": 0}
        loader = TrainingLoader(uri, data, degraded=degraded, scale=4, batch_size=BATCH, **settings)
        for _ in islice(loader, steps):
            pass

    samples: list[Sample] = []
    for key, members in (entry for name in shards.shard_names("train") for entry in shards.samples(name)):
        box = chances_of(0, 0, key, num_variants=0, crop_from=decode_image(members).shape).box
        samples.append((members, box if geometry == "random" else None))
    samples = samples[: steps * BATCH]
    originals = [path.read_bytes() for path in sorted((root / "pictures").iterdir())][: len(samples)]
    seconds = best_in_turns(
        {
            "loader": lambda: load(None),
            "online": lambda: load(DegradationConfig(variants=0)),
            "pictures": lambda: [picture(*sample) for sample in samples],
            "conditions": lambda: batches(samples),
            "originals": lambda: [resize_photograph(simplejpeg.decode_jpeg(content), SIDE) for content in originals],
        }
    )
    each = {f"{name}_ms": round(1000 * value / len(samples), 2) for name, value in seconds.items()}
    loops = ("pictures", "conditions", "originals")
    return each | {f"share_of_{name}_rate": round(seconds[name] / seconds["loader"], 3) for name in loops}


def picture(members: dict[str, bytes], box: CropBox | None) -> NDArray[np.uint8]:
    image = np.asarray(simplejpeg.decode_jpeg(members["jpg"]), dtype=np.uint8)
    return image if box is None else crop_photograph(image, box, SIDE)


def batches(samples: list[Sample]) -> None:
    """Pictures and rendered conditions, stacked in batches."""
    for first in range(0, len(samples), BATCH):
        images, conditions = [], []
        for members, box in samples[first : first + BATCH]:
            edges = resize_edges(decode_condition(members, box).values, SIDE, SIDE)
            images.append(torch.from_numpy(picture(members, box)).permute(2, 0, 1).float().div_(127.5).sub_(1.0))
            conditions.append(render_condition(StoredCondition(edges), "sketch"))
        torch.stack(images), torch.stack(conditions)


if __name__ == "__main__":
    main()
