"""Figures of generated pictures: each set beside the ground truth of the same conditions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval import Metric, lpips_distance, lpips_diversity
from eval.features import FeatureExtractor, features_of
from eval.fid import fid_from_features
from eval.grid import PictureGrid
from eval.kid import kid_from_features
from eval.lpips import PerceptualNetwork, lpips_distances
from eval.pictures import mean_with_bounds
from eval.pixels import pixel_distances
from piti.config import Config
from piti.data.conditions import condition_picture, unit_range
from piti.data.examples import ExampleReader
from piti.data.geometry import base_pictures
from piti.errors import DataError
from piti.evaluation.picture_sets import SET_NAMES, PictureSet, PictureSetName

FEWEST_PICTURES = 4  # what an unbiased kernel distance between halves of both sets needs at least
STAGE_SETS: tuple[PictureSetName, ...] = ("untrained", "stage1", "base")  # at the base network's size


@dataclass(frozen=True)
class Truth:
    """What a generated picture is held against: uint8 (S,S,3) and (s,s,3), and its condition as people look at it."""

    picture: NDArray[np.uint8]
    small: NDArray[np.uint8]
    condition: NDArray[np.uint8]


class Evaluation:
    """Generated pictures in the folder `samples` and the truth in `shards`.

    Conditions of which any set lacks a picture (a damaged sample) are left out of all of them.
    Raises DataError where pictures are damaged, or too few.
    """

    def __init__(self, config: Config, shards: str, samples: str) -> None:
        self._config = config
        self.sets = {name: PictureSet(samples, name) for name in SET_NAMES}
        self.stage_sets = [name for name in STAGE_SETS if len(self.sets[name])]
        self._reader = ExampleReader(shards, "validation", config.data, None, config.scale)
        self._numbers = {key: number for number, key in enumerate(self._reader.keys)}
        compared = [self.sets[name] for name in ("final", *self.stage_sets)]
        self.keys = [key for key in self._reader.keys if all(key in pictures for pictures in compared)]
        if len(self.keys) < FEWEST_PICTURES:
            raise DataError(
                f"{samples} has {len(self.keys)} pictures to measure, at least {FEWEST_PICTURES} are needed",
                "raise sampling.num_samples, or give the source more validation pictures",
            )

    def truth(self, key: str) -> Truth:
        """The ground truth of a condition."""
        example = self._reader.example(self._numbers[key], None)
        small = base_pictures(unit_range(example.image)[None], self._config.models.base.image_size)[0]
        condition = condition_picture(example.condition.numpy(), self._config.data.modality)
        return Truth(example.image.permute(1, 2, 0).contiguous().numpy(), _levels(small), condition)

    def metrics(self, extractor: FeatureExtractor, network: PerceptualNetwork) -> dict[str, Metric]:
        """`fid`, `kid`, `lpips` of the final pictures and, where several were drawn of one condition, `lpips_diversity`."""
        draws, seed = self._config.evaluation.bootstrap_samples, self._config.seed
        features = features_of(self._generated("final"), extractor)
        true_features = features_of(self._truths(), extractor)
        metrics = {
            "fid": fid_from_features(features, true_features, bootstrap_samples=draws, seed=seed),
            "kid": kid_from_features(features, true_features, bootstrap_samples=draws, seed=seed),
            "lpips": lpips_distance(
                self._generated("final"), self._truths(), network, bootstrap_samples=draws, seed=seed
            ),
        }
        diverse = self.sets["diversity"]
        if len(diverse):
            groups = (diverse.variants(key) for key in diverse.keys)
            metrics["lpips_diversity"] = lpips_diversity(groups, network, bootstrap_samples=draws, seed=seed)
        return metrics

    def comparison(self, network: PerceptualNetwork) -> dict[str, dict[str, Metric]]:
        """Distances to the truth at the base network's size for each set of that size: untrained, stage1, base.

        `lpips` and `rmse` (levels of 0..255); after the first set also `lpips_gain`, by how much it is closer than
        the set before it: conditions and noise are the same, so the mean of the pictures' own differences.
        """
        draws, seed = self._config.evaluation.bootstrap_samples, self._config.seed
        comparison: dict[str, dict[str, Metric]] = {}
        previous: NDArray[np.float64] | None = None
        for name in self.stage_sets:
            lpips = lpips_distances(self._generated(name), self._truths(small=True), network)
            rmse = pixel_distances(self._generated(name), self._truths(small=True))
            measured = {"lpips": lpips, "rmse": rmse}
            if previous is not None:
                measured["lpips_gain"] = previous - lpips
            comparison[name] = {kind: mean_with_bounds(values, draws, seed) for kind, values in measured.items()}
            previous = lpips
        return comparison

    def final_grid(self) -> PictureGrid:
        """Condition, base, generated and true pictures of the first conditions."""
        base, final = self._config.models.base.image_size, self._config.models.upsampler.image_size
        rows = []
        for key in self._shown:
            truth = self.truth(key)
            pictures = self.sets["base"].picture(key), self.sets["final"].picture(key)
            rows.append([truth.condition, *pictures, truth.picture])
        columns = ["condition", f"base {base}x{base}", f"generated {final}x{final}", "ground truth"]
        return PictureGrid(columns, rows, self._shown, "The first conditions of the validation split, not chosen.")

    def stages_grid(self, labels: Sequence[str]) -> PictureGrid:
        """The same conditions and noise through the networks of `stage_sets`, beside the truth at their size."""
        rows = [
            [*(self.sets[name].picture(key) for name in self.stage_sets), self.truth(key).small] for key in self._shown
        ]
        caption = "What the base network draws from the same condition and the same noise as its training goes on."
        return PictureGrid([*labels, "ground truth"], rows, self._shown, caption)

    @property
    def _shown(self) -> list[str]:
        return self.keys[: self._config.evaluation.grid_samples]

    def _generated(self, name: PictureSetName) -> Iterator[NDArray[np.uint8]]:
        return (self.sets[name].picture(key) for key in self.keys)

    def _truths(self, small: bool = False) -> Iterator[NDArray[np.uint8]]:
        for key in self.keys:
            truth = self.truth(key)
            yield truth.small if small else truth.picture


def _levels(picture: Tensor) -> NDArray[np.uint8]:
    """float (3, H, W) in [-1, 1] -> uint8 (H, W, 3)."""
    levels = ((picture + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(levels.permute(1, 2, 0).numpy())
