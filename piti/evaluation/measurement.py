"""Figures of generated pictures: each set beside the ground truth of the same conditions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval import Metric
from eval.features import FeatureExtractor, Features, features_of
from eval.fid import fid_from_features
from eval.kid import kid_from_features
from eval.lpips import PerceptualNetwork, diversity_distances, lpips_distances
from eval.pictures import mean_metric
from eval.pixels import pixel_distances
from piti import storage
from piti.config import Config
from piti.data.conditions import condition_picture, unit_range
from piti.data.examples import ExampleReader
from piti.data.geometry import base_pictures
from piti.data.manifest import MANIFEST
from piti.errors import DataError
from piti.evaluation.picture_sets import SET_NAMES, PictureSet, PictureSetName, num_wanted, set_folders
from piti.evaluation.stored_arrays import StoredArrays

FEWEST_PICTURES = 4
STAGE_SETS: tuple[PictureSetName, ...] = ("untrained", "stage1", "base")  # at the base network's size
_NAMED_AT_MOST = 10


@dataclass(frozen=True)
class Truth:
    """What a generated picture is held against: uint8 (S,S,3) and (s,s,3), and its condition as people look at it."""

    picture: NDArray[np.uint8]
    small: NDArray[np.uint8]
    condition: NDArray[np.uint8]


class Evaluation:
    """The picture sets among a job's inputs (`set_folders`), and the truth in `inputs["shards"]`.

    `keys` are the conditions that `sampling.num_samples` asks for, in the order of the validation split. Each set must
    have a picture of each, `diversity` and `upsampled` of as many as the config says. Raises DataError where pictures
    are missing (naming them) or damaged, or too few.
    """

    def __init__(self, config: Config, inputs: Mapping[str, str]) -> None:
        self._config = config
        folders = set_folders(inputs)
        self.sets = {name: PictureSet(folders.get(name)) for name in SET_NAMES}
        self.stage_sets = [name for name in STAGE_SETS if name in folders]
        self._shards = inputs["shards"]
        self._reader = ExampleReader(self._shards, "validation", config.data, None, config.scale)
        self._numbers = {key: number for number, key in enumerate(self._reader.keys)}
        self.keys = list(self._reader.keys[: config.sampling.num_samples])
        if len(self.keys) < FEWEST_PICTURES:
            raise DataError(
                f"there are {len(self.keys)} pictures to measure, at least {FEWEST_PICTURES} are needed",
                "raise sampling.num_samples, or give the source more validation pictures",
            )
        for name, folder in folders.items():
            self._check_complete(name, folder)

    def keys_of(self, name: PictureSetName) -> list[str]:
        """The conditions that a set has pictures of."""
        return self.keys[: num_wanted(self._config, name, len(self.keys))]

    def _check_complete(self, name: PictureSetName, folder: str) -> None:
        keys = self.keys_of(name)
        missing = [key for key in keys if key not in self.sets[name]]
        if missing:
            named = ", ".join(missing[:_NAMED_AT_MOST]) + (" ..." if len(missing) > _NAMED_AT_MOST else "")
            raise DataError(
                f"{folder}: {len(missing)} of {len(keys)} pictures of the set {name} are missing: {named}",
                f"delete {storage.join(folder, storage.MARKER)} and run again: what is missing is drawn",
            )

    def truth(self, key: str) -> Truth:
        """The ground truth of a condition."""
        example = self._reader.example(self._numbers[key], None)
        small = base_pictures(unit_range(example.image)[None], self._config.models.base.image_size)[0]
        condition = condition_picture(example.condition.numpy(), self._config.data.modality)
        return Truth(example.image.permute(1, 2, 0).contiguous().numpy(), _levels(small), condition)

    def generated(self, name: PictureSetName) -> Iterator[NDArray[np.uint8]]:
        """The pictures of a set, in the order of `keys`: uint8 (H,W,3)."""
        return (self.sets[name].picture(key) for key in self.keys)

    def truths(self, small: bool = False) -> Iterator[NDArray[np.uint8]]:
        """The truth in the order of `keys`, `small` at the base network's size: uint8 (H,W,3)."""
        for key in self.keys:
            truth = self.truth(key)
            yield truth.small if small else truth.picture

    def describe(self, name: PictureSetName) -> dict[str, Any]:
        """What a set's pictures are, for `StoredArrays`: the pictures themselves, and which of them."""
        return {"pictures": self.sets[name].digest(self.keys_of(name))}

    def describe_truth(self, side: int) -> dict[str, Any]:
        """What the truth is, for `StoredArrays`: shards, how they are read, at which size, and which of them."""
        return {
            "shards": storage.sha256_file(storage.join(self._shards, MANIFEST)),
            "data": self._config.data.model_dump(mode="json", exclude={"source"}),
            "keys": storage.sha256_bytes("\n".join(self.keys).encode("utf-8", "surrogateescape")),
            "side": side,
        }


class Measurement:
    """Figures of an evaluation. Networks see pictures whose features and distances are not stored yet, no others."""

    def __init__(
        self,
        evaluation: Evaluation,
        config: Config,
        extractor: FeatureExtractor,
        network: PerceptualNetwork,
        stored: StoredArrays,
    ) -> None:
        self._evaluation = evaluation
        self._sides = config.models.base.image_size, config.models.upsampler.image_size
        self._extractor = extractor
        self._network = network
        self._stored = stored

    def metrics(self) -> dict[str, Metric]:
        """By kind (`piti.evaluation.figures`): `fid`, `kid`, `lpips` of the final pictures, `lpips_diversity` where drawn."""
        side = self._sides[1]
        generated = self._features(self._evaluation.describe("final"), lambda: self._evaluation.generated("final"))
        truth = self._features(self._evaluation.describe_truth(side), self._evaluation.truths)
        identity = self._network.identity
        metrics = {
            "fid": fid_from_features(generated, truth),
            "kid": kid_from_features(generated, truth),
            "lpips": mean_metric(identity.figure("lpips", "pd"), self.distances(), identity),
        }
        if self._evaluation.keys_of("diversity"):
            values = self.diversity()
            metrics["lpips_diversity"] = mean_metric(
                identity.figure("lpips_diversity", "pd_diversity"), values, identity
            )
        return metrics

    @property
    def num_computed(self) -> int:
        """How many arrays were not stored yet."""
        return self._stored.num_computed

    def extract(self) -> None:
        """Let the networks see every picture, so that what they compute is stored: figures are arithmetic afterwards."""
        self._features(self._evaluation.describe("final"), lambda: self._evaluation.generated("final"))
        self._features(self._evaluation.describe_truth(self._sides[1]), self._evaluation.truths)
        if self._evaluation.keys_of("diversity"):
            self.diversity()
        for name in ("final", *self._evaluation.stage_sets):
            self.distances(name)

    def diversity(self) -> NDArray[np.float64]:
        """Mean perceptual distance between the pictures of each condition of the set `diversity`."""
        diverse, keys = self._evaluation.sets["diversity"], self._evaluation.keys_of("diversity")
        about = {"diversity": self._evaluation.describe("diversity"), "network": asdict(self._network.identity)}
        return self._stored.get(
            about, lambda: diversity_distances((diverse.variants(key) for key in keys), self._network)
        )

    def distances(self, name: PictureSetName = "final") -> NDArray[np.float64]:
        """Perceptual distance of each picture of a set to its truth, in the order of the evaluation's keys."""
        small = name != "final"
        about = {
            "distances": self._evaluation.describe(name),
            "truth": self._evaluation.describe_truth(self._sides[0 if small else 1]),
            "network": asdict(self._network.identity),
        }
        return self._stored.get(
            about,
            lambda: lpips_distances(self._evaluation.generated(name), self._evaluation.truths(small), self._network),
        )

    def comparison(self) -> dict[str, dict[str, Metric]]:
        """Distances to the truth at the base network's size for each set of that size: untrained, stage1, base.

        `lpips` and `rmse` (levels of 0..255); after the first set also `lpips_gain`, by how much it is closer than
        the set before it: conditions and noise are the same, so the mean of the pictures' own differences.
        """
        comparison: dict[str, dict[str, Metric]] = {}
        identity = self._network.identity
        name = identity.figure("lpips", "pd")
        previous: NDArray[np.float64] | None = None
        for picture_set in self._evaluation.stage_sets:
            distances = self.distances(picture_set)
            rmse = pixel_distances(self._evaluation.generated(picture_set), self._evaluation.truths(small=True))
            comparison[picture_set] = {
                "lpips": mean_metric(name, distances, identity),
                "rmse": mean_metric("rmse", rmse),
            }
            if previous is not None:
                comparison[picture_set]["lpips_gain"] = mean_metric(f"{name}_gain", previous - distances, identity)
            previous = distances
        return comparison

    def _features(self, about: dict[str, Any], pictures: Callable[[], Iterator[NDArray[np.uint8]]]) -> Features:
        """Features of pictures of the upsampler's size, in float32 as the network gives them."""
        identity = self._extractor.identity
        values = self._stored.get(
            {"features": about, "network": asdict(identity), "dtype": "float32"},
            lambda: features_of(pictures(), self._extractor).values.float().numpy(),
        )
        return Features(torch.from_numpy(values).double(), identity, (self._sides[1], self._sides[1]))


def spread(values: NDArray[np.float64], count: int) -> dict[str, Sequence[int]]:
    """Numbers of the pictures with the `count` smallest, middle and largest distances (N,), each in rising order."""
    order = [int(number) for number in np.argsort(values, kind="stable")]
    count = min(count, len(order) // 3)
    middle = (len(order) - count) // 2
    return {"best": order[:count], "median": order[middle : middle + count], "worst": order[len(order) - count :]}


def _levels(picture: Tensor) -> NDArray[np.uint8]:
    """float (3, H, W) in [-1, 1] -> uint8 (H, W, 3)."""
    levels = ((picture + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(levels.permute(1, 2, 0).numpy())
