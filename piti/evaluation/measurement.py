"""Figures of generated pictures: each set beside the ground truth of the same conditions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval import Metric
from eval.features import FeatureExtractor, Features, features_of
from eval.lpips import PerceptualNetwork, diversity_distances, lpips_distances
from eval.pictures import NetworkIdentity, mean_metric
from eval.pixels import pixel_distances
from eval.reconstruction import reconstruction_qualities
from piti import storage
from piti.config import Config
from piti.config.tree import FigureKind
from piti.data.conditions import StoredCondition, condition_picture, unit_range
from piti.data.examples import ExampleReader
from piti.data.manifest import MANIFEST
from piti.data.resizing import base_pictures
from piti.errors import DataError
from piti.evaluation.figures import FIGURES, Alignment, FeatureNetwork, Need, PerceptualTrunk
from piti.evaluation.networks import Networks
from piti.evaluation.picture_sets import SET_NAMES, PictureSet, PictureSetName, num_wanted, set_folders
from piti.evaluation.stored_arrays import StoredArrays

FEWEST_PICTURES = 4
STAGE_SETS: tuple[PictureSetName, ...] = ("untrained", "stage1", "base")  # at the base network's size
_NAMED_AT_MOST = 10


@dataclass(frozen=True)
class Truth:
    """The ground truth of a generated picture: uint8 (S,S,3) and (s,s,3), and its condition painted for people."""

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

    def conditions(self) -> Iterator[StoredCondition]:
        """The conditions as stored, in the order of `keys`."""
        return (self._reader.condition(self._numbers[key])[0] for key in self.keys)

    @property
    def has_given_sketches(self) -> bool:
        """Whether sketches come with the dataset; then edges detected in pictures are not comparable with them."""
        about = self._reader.condition(self._numbers[self.keys[0]])[1]
        return bool(about.get("sketch", {}).get("name") == "given")

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
    """Figures of an evaluation: the `Material` of `piti.evaluation.figures`.

    Networks process only pictures whose features and distances are not stored yet.
    """

    def __init__(self, evaluation: Evaluation, config: Config, networks: Networks, stored: StoredArrays) -> None:
        self._evaluation = evaluation
        self._config = config
        self._sides = config.models.base.image_size, config.models.upsampler.image_size
        self._networks = networks
        self._stored = stored

    def metrics(self) -> dict[FigureKind, Metric]:
        """By kind, every figure of the registry whose needs are there, of the final pictures where it does not say else."""
        there = self._available()
        metrics: dict[FigureKind, Metric] = {}
        for kind, figure in FIGURES.items():
            metric = figure.measure(self) if there.issuperset(figure.needs) else None
            if metric is not None:
                metrics[kind] = metric
        return metrics

    def _available(self) -> set[Need]:
        names: tuple[FeatureNetwork | PerceptualTrunk, ...] = ("inception", "lpips_trunk", "clip", "vgg16")
        there: set[Need] = {name for name in names if getattr(self._networks, name) is not None}
        sets: tuple[Literal["diversity", "upsampled"], ...] = ("diversity", "upsampled")
        there |= {name for name in sets if len(self._evaluation.sets[name])}
        if self._networks.aligner is not None and not self._evaluation.has_given_sketches:
            there.add(self._config.data.modality)
        return there

    @property
    def num_computed(self) -> int:
        """How many arrays were not stored yet."""
        return self._stored.num_computed

    def extract(self) -> None:
        """Compute and store all features and distances. Afterwards figures need no network."""
        there = self._available()
        extractors: tuple[FeatureNetwork, ...] = ("inception", "clip", "vgg16")
        trunks: tuple[PerceptualTrunk, ...] = ("lpips_trunk", "vgg16")
        for network in (name for name in extractors if name in there):
            self.features(network)
        for trunk in (name for name in trunks if name in there):
            self.perceptual(trunk, "distances")
        if "diversity" in there:
            self.perceptual("lpips_trunk", "diversity")
        if self._config.data.modality in there:
            self.alignment()
        for name in self._evaluation.stage_sets:
            self.distances(name)

    def features(self, network: FeatureNetwork) -> tuple[Features, Features]:
        """Of the final pictures and of the truth, in float32 as the network gives them."""
        extractor = self._networks.extractor(network)
        return (
            self._features(extractor, self._evaluation.describe("final"), lambda: self._evaluation.generated("final")),
            self._features(extractor, self._evaluation.describe_truth(self._sides[1]), self._evaluation.truths),
        )

    def perceptual(
        self, trunk: PerceptualTrunk, kind: Literal["distances", "diversity"]
    ) -> tuple[NDArray[np.float64], NetworkIdentity]:
        """Of the final pictures to the truth, or between those of each condition in the set `diversity`."""
        network = self._networks.perceptual(trunk)
        if kind == "distances":
            return self.distances("final", network), network.identity
        diverse = self._evaluation.sets["diversity"]
        about = {"diversity": self._evaluation.describe("diversity"), "network": asdict(network.identity)}
        groups = (diverse.variants(key) for key in self._evaluation.keys_of("diversity"))
        return self._stored.get(about, lambda: diversity_distances(groups, network)), network.identity

    def reconstruction(self) -> NDArray[np.float64]:
        """PSNR and SSIM of the set `upsampled`, (N, 2)."""
        keys = self._evaluation.keys_of("upsampled")
        about = {
            "reconstruction": self._evaluation.describe("upsampled"),
            "truth": self._evaluation.describe_truth(self._sides[1]),
        }
        upsampled = self._evaluation.sets["upsampled"]
        return self._stored.get(
            about,
            lambda: reconstruction_qualities(
                (upsampled.picture(key) for key in keys), (self._evaluation.truth(key).picture for key in keys)
            ),
        )

    def alignment(self) -> Alignment:
        """Of the final pictures, and of the truth, to the conditions."""
        aligner = self._networks.aligner
        if aligner is None:
            raise ValueError("nothing is configured that compares pictures with conditions")
        truth = self._evaluation.describe_truth(self._sides[1])
        network = None if aligner.network is None else asdict(aligner.network)
        about = {"alignment": aligner.about, "network": network, "conditions": truth}

        def rows(pictures: dict[str, Any], source: Callable[[], Iterator[NDArray[np.uint8]]]) -> NDArray[Any]:
            return self._stored.get(
                {**about, "of": pictures}, lambda: aligner.rows(source(), self._evaluation.conditions())
            )

        generated = rows(self._evaluation.describe("final"), lambda: self._evaluation.generated("final"))
        return Alignment(generated, rows(truth, self._evaluation.truths), aligner.network, aligner.slug)

    def distances(
        self, name: PictureSetName = "final", network: PerceptualNetwork | None = None
    ) -> NDArray[np.float64]:
        """Distance of each picture of a set to its truth, in the order of the evaluation's keys; by default LPIPS's."""
        small = name != "final"
        seen_by = network or self._networks.lpips_trunk
        about = {
            "distances": self._evaluation.describe(name),
            "truth": self._evaluation.describe_truth(self._sides[0 if small else 1]),
            "network": asdict(seen_by.identity),
        }
        return self._stored.get(
            about,
            lambda: lpips_distances(self._evaluation.generated(name), self._evaluation.truths(small), seen_by),
        )

    def comparison(self) -> dict[str, dict[str, Metric]]:
        """Distances to the truth at the base network's size for each set of that size: untrained, stage1, base.

        `lpips` and `rmse` (levels of 0..255); after the first set also `lpips_gain`, by how much it is closer than
        the set before it: conditions and noise are the same, so the mean of the pictures' own differences.
        """
        comparison: dict[str, dict[str, Metric]] = {}
        identity = self._networks.lpips_trunk.identity
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

    def _features(
        self, extractor: FeatureExtractor, about: dict[str, Any], pictures: Callable[[], Iterator[NDArray[np.uint8]]]
    ) -> Features:
        """Features of pictures of the upsampler's size."""
        values = self._stored.get(
            {"features": about, "network": asdict(extractor.identity), "dtype": "float32"},
            lambda: features_of(pictures(), extractor).values.float().numpy(),
        )
        return Features(torch.from_numpy(values).double(), extractor.identity, (self._sides[1], self._sides[1]))


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
