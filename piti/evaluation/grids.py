"""Pictures side by side, chosen by stated rules, never by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.grid import PictureGrid
from piti.config import Config
from piti.evaluation.measurement import Evaluation, spread
from piti.evaluation.report import stage_labels
from piti.seeds import stable_hash

_EACH = 3  # best, median and worst pictures shown


def random_keys(keys: Sequence[str], count: int) -> list[str]:
    """`count` keys by the order of their hashes: random, and the same for every checkpoint."""
    return sorted(keys, key=lambda key: stable_hash("grid", key))[:count]


def final_grids(evaluation: Evaluation, config: Config, distances: Mapping[str, float]) -> list[PictureGrid]:
    """Random pictures with what they were made of; then the best, median and worst by `distances` (key to distance)."""
    base, final = config.models.base.image_size, config.models.upsampler.image_size
    shown = random_keys(evaluation.keys, config.evaluation.grid_samples)
    rows = []
    for key in shown:
        truth = evaluation.truth(key)
        pictures = evaluation.sets["base"].picture(key), evaluation.sets["final"].picture(key)
        rows.append([truth.condition, *pictures, truth.picture])
    columns = ["condition", f"base {base}×{base}", f"generated {final}×{final}", "ground truth"]
    notes = [_note(distances[key]) for key in shown]
    caption = "Conditions drawn at random by a hash of their keys: the same for every checkpoint."
    random_grid = PictureGrid(columns, rows, shown, caption, "Pictures", notes)
    return [random_grid, *_ranked(evaluation, distances)]


def stages_grid(evaluation: Evaluation, config: Config, origin: Mapping[str, Any]) -> PictureGrid:
    """The same conditions and noise through the networks of `stage_sets`, beside the truth at their size.

    `origin`: the stored provenance.
    """
    shown = random_keys(evaluation.keys, config.evaluation.grid_samples)
    rows = [
        [*(evaluation.sets[name].picture(key) for name in evaluation.stage_sets), evaluation.truth(key).small]
        for key in shown
    ]
    caption = "What the base network draws from the same condition and the same noise as its training goes on."
    columns = [*stage_labels(evaluation.stage_sets, origin), "ground truth"]
    return PictureGrid(columns, rows, shown, caption, "The same noise, stage by stage")


def _ranked(evaluation: Evaluation, distances: Mapping[str, float]) -> list[PictureGrid]:
    keys = list(distances)
    grids = []
    for rank, numbers in spread(np.array(list(distances.values())), _EACH).items():
        chosen = [keys[number] for number in numbers]
        truths = [evaluation.truth(key) for key in chosen]
        rows = [
            [truth.condition, evaluation.sets["final"].picture(key), truth.picture]
            for key, truth in zip(chosen, truths, strict=True)
        ]
        caption = f"The {rank} {len(chosen)} of {len(keys)} by perceptual distance to the ground truth."
        columns = ["condition", "generated", "ground truth"]
        grids.append(
            PictureGrid(
                columns,
                rows,
                chosen,
                caption,
                f"{rank.capitalize()} pictures",
                [_note(distances[key]) for key in chosen],
            )
        )
    return grids


def _note(distance: float) -> str:
    return f"perceptual distance {distance:.3g}"
