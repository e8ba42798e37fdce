"""Do the demo's pictures follow their conditions? Measured on the pictures that a demo run left behind.

    .venv/bin/python benchmarks/demo_conditions.py [--config demo] > docs/demo-result.json

For each stage's pictures and the final ones: the share whose own truth is among the five nearest of all truths (root mean
square at 16x16 pixels), and the same where each picture is told another one's truth is its own.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from eval.retrieval import truth_ranks
from piti import storage
from piti.config.presets import load_config
from piti.evaluation.measurement import Evaluation

NEAREST = 5


def newest(folder: str) -> str:
    """The finished folder in `folder` that was written last."""
    done = [storage.join(folder, name) for name in storage.list_names(folder)]
    done = [uri for uri in done if storage.exists(storage.join(uri, storage.MARKER))]
    if not done:
        raise SystemExit(f"there is nothing finished in {folder}: run the demo first")
    return max(done, key=lambda uri: storage.local_path(storage.join(uri, storage.MARKER)).stat().st_mtime)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="demo")
    parser.add_argument("--shards", help="default: the newest below the config's root")
    parser.add_argument("--samples", help="default: the newest below the config's root")
    arguments = parser.parse_args()
    config = load_config(arguments.config)
    shards = arguments.shards or newest(storage.join(config.root, "shards"))
    samples = arguments.samples or newest(storage.join(config.root, "evaluations"))
    evaluation = Evaluation(config, shards, samples)
    truths = [evaluation.truth(key) for key in evaluation.keys]
    shuffled = np.random.default_rng(0).permutation(len(truths))
    shares = {}
    for name in ("final", *evaluation.stage_sets):
        pictures = np.stack([evaluation.sets[name].picture(key) for key in evaluation.keys])
        wanted = np.stack([truth.picture if name == "final" else truth.small for truth in truths])
        own = float((truth_ranks(pictures, wanted) < NEAREST).mean())
        others = float((truth_ranks(pictures, wanted[shuffled]) < NEAREST).mean())
        shares[name] = {"own": round(own, 3), "shuffled": round(others, 3)}
    print(json.dumps({"pictures": len(truths), "chance": round(NEAREST / len(truths), 3), "top5": shares}, indent=1))


if __name__ == "__main__":
    main()
