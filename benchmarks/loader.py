"""Times the loader beside bare loops over the same files.

    python benchmarks/loader.py [--pictures 300] [--only squash random]

Processor time a picture on one thread, the least of three rounds in which all take turns. Sketches of 640x480 JPEGs:

  squash   shards at training size, 256x256.
  random   shards of kept JPEGs, of which random squares are cut and resized.

`online` is the loader that degrades each picture as it is read (`degradation.variants: 0`). Loops by the loader's own
libraries, over files in memory: `conditions` decodes the same files to pictures and rendered conditions, as float planes
in a batch; `originals` decodes the original JPEGs and resizes them to training size, without conditions.
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import simplejpeg
import torch
from sharding import SIDE, best_in_turns, make_shards, write_pictures

from piti.config import DegradationConfig
from piti.data.conditions import StoredCondition, paint_condition, unit_range
from piti.data.decoding import decode_condition, decode_image
from piti.data.examples import Degraded, chances_of
from piti.data.loader import TrainingLoader
from piti.data.resizing import CropBox, crop_photograph, resize_edges, resize_photograph
from piti.data.shards import ShardSet

BATCH = 10
Sample = tuple[dict[str, bytes], CropBox | None]  # files of a sample, and the square of it that is used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--only", nargs="*", default=["squash", "random"], help="parts to measure")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder) / "pictures", options.pictures)
        for geometry in options.only:
            print(f"{geometry}, milliseconds a picture: {times(Path(folder), geometry)}")


def times(root: Path, geometry: str) -> dict[str, float]:
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
    seconds = best_in_turns({
        "loader": lambda: load(None),
        "online": lambda: load(DegradationConfig(variants=0)),
        "conditions": lambda: batches(samples),
        "originals": lambda: [resize_photograph(simplejpeg.decode_jpeg(content), SIDE) for content in originals],
    })  # fmt: skip
    return {name: round(1000 * value / len(samples), 2) for name, value in seconds.items()}


def batches(samples: list[Sample]) -> None:
    """Pictures and rendered conditions, stacked in batches."""
    for first in range(0, len(samples), BATCH):
        images, conditions = [], []
        for members, box in samples[first : first + BATCH]:
            edges = resize_edges(decode_condition(members, box).values, SIDE, SIDE)
            image = decode_image(members)
            image = image if box is None else crop_photograph(image, box, SIDE)
            images.append(unit_range(torch.from_numpy(image).permute(2, 0, 1)))
            conditions.append(unit_range(torch.from_numpy(paint_condition(StoredCondition(edges), "sketch"))))
        torch.stack(images), torch.stack(conditions)


if __name__ == "__main__":
    main()
