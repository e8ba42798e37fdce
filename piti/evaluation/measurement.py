"""Figures of generated pictures: each set beside the ground truth of the same conditions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
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
from piti.config.evaluation import FigureKind
from piti.data.conditions import StoredCondition, condition_picture, levels, unit_range
from piti.data.examples import ExampleReader
from piti.data.manifest import MANIFEST
from piti.data.resizing import base_pictures
from piti.data.shards import named_sample
from piti.errors import DataError
from piti.evaluation.alignment import Aligner
from piti.evaluation.figures import FIGURES, Alignment, FeatureNetwork, Need, PerceptualTrunk
from piti.evaluation.networks import Networks
from piti.evaluation.picture_sets import (
    SET_NAMES,
    Part,
    PictureSet,
    PictureSetName,
    drawn_ranges,
    num_wanted,
    set_folders,
    variants_of,
)
from piti.evaluation.stored_arrays import StoredArrays

FEWEST_PICTURES = 4
STAGE_SETS: tuple[PictureSetName, ...] = ("untrained", "stage1", "base")  # at the base network's size
_NAMED_AT_MOST = 10
_BATCH_PICTURES = 32


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
        keys, variants = self.keys_of(name), variants_of(self._config, name)
        missing = [key for key in keys if not self.sets[name].holds(key, variants)]
        if missing:
            numbers = [self._numbers[key] for key in missing]
            drawn = [part for part in drawn_ranges(folder) if any(number in part for number in numbers)]
            tars = [storage.join(folder, Part(name, part.start, part.stop).file_name) for part in drawn]
            raise DataError(
                f"{folder}: {len(missing)} of {len(keys)} pictures of the set {name} are missing: {_listed(missing)}",
                f"{f'delete {_listed(tars)} and ' if tars else ''}run again: what is missing is drawn",
            )

    def truth(self, key: str) -> Truth:
        """The ground truth of a condition."""
        with named_sample(self._shards, key):
            example = self._reader.example(self._numbers[key], None)
        small = base_pictures(unit_range(example.image)[None], self._config.models.base.image_size)[0]
        condition = condition_picture(example.condition.numpy(), self._config.data.modality)
        return Truth(example.image.permute(1, 2, 0).contiguous().numpy(), _levels(small), condition)

    def condition(self, key: str) -> StoredCondition:
        """A condition as stored."""
        with named_sample(self._shards, key):
            return self._reader.condition(self._numbers[key])[0]

    @property
    def has_given_sketches(self) -> bool:
        """Whether sketches come with the dataset; then edges detected in pictures are not comparable with them."""
        with named_sample(self._shards, self.keys[0]):
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


class _Batch:
    """Pictures of a few conditions, each decoded once, whoever looks at it."""

    def __init__(self, evaluation: Evaluation) -> None:
        self._evaluation = evaluation
        self._truths: dict[str, Truth] = {}
        self._generated: dict[tuple[PictureSetName, str], NDArray[np.uint8]] = {}

    def truths(self, keys: Sequence[str], small: bool = False) -> list[NDArray[np.uint8]]:
        """`small`: at the base network's size. uint8 (H,W,3) each."""
        for key in keys:
            if key not in self._truths:
                self._truths[key] = self._evaluation.truth(key)
        return [self._truths[key].small if small else self._truths[key].picture for key in keys]

    def generated(self, name: PictureSetName, keys: Sequence[str]) -> list[NDArray[np.uint8]]:
        """The pictures of a set: uint8 (H,W,3) each."""
        for key in keys:
            if (name, key) not in self._generated:
                self._generated[name, key] = self._evaluation.sets[name].picture(key)
        return [self._generated[name, key] for key in keys]

    def variants(self, keys: Sequence[str]) -> list[NDArray[np.uint8]]:
        """All pictures of each condition in `diversity`: uint8 (K,H,W,3)."""
        return [self._evaluation.sets["diversity"].variants(key) for key in keys]

    def conditions(self, keys: Sequence[str]) -> list[StoredCondition]:
        return [self._evaluation.condition(key) for key in keys]


@dataclass(frozen=True)
class _Wanted:
    """An array with a row for each condition in `keys`, which come first in the evaluation's; `about` as in `StoredArrays`."""

    about: dict[str, Any]
    keys: Sequence[str]
    rows: Callable[[_Batch, Sequence[str]], NDArray[Any]]


class Measurement:
    """Figures of an evaluation: the `Material` of `piti.evaluation.figures`.

    Networks process only pictures whose features and distances are not stored yet, in one pass.
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
        _ = self._arrays

    @cached_property
    def _arrays(self) -> dict[str, NDArray[Any]]:
        """Features and distances by the names that `_wanted` gives."""
        wanted = self._wanted()
        found = {name: self._stored.read(one.about) for name, one in wanted.items()}
        parts: dict[str, list[NDArray[Any]]] = {name: [] for name, array in found.items() if array is None}
        if parts:
            for first in range(0, len(self._evaluation.keys), _BATCH_PICTURES):
                batch = _Batch(self._evaluation)
                for name, rows in parts.items():
                    keys = wanted[name].keys[first : first + _BATCH_PICTURES]
                    if keys:
                        rows.append(wanted[name].rows(batch, keys))
        computed = {name: np.concatenate(rows) for name, rows in parts.items()}
        for name, array in computed.items():
            self._stored.write(wanted[name].about, array)
        return {name: array for name, array in found.items() if array is not None} | computed

    def _wanted(self) -> dict[str, _Wanted]:
        there = self._available()
        extractors: tuple[FeatureNetwork, ...] = ("inception", "clip", "vgg16")
        trunks: tuple[PerceptualTrunk, ...] = ("lpips_trunk", "vgg16")
        wanted: dict[str, _Wanted] = {}
        for network in (name for name in extractors if name in there):
            wanted |= self._wanted_features(network, self._networks.extractor(network))
        for trunk in (name for name in trunks if name in there):
            wanted[f"{trunk} final"] = self._wanted_distances("final", self._networks.perceptual(trunk))
        for name in self._evaluation.stage_sets:
            wanted[f"lpips_trunk {name}"] = self._wanted_distances(name, self._networks.lpips_trunk)
            wanted[f"rmse {name}"] = self._wanted_errors(name)
        if "diversity" in there:
            seen_by = self._networks.lpips_trunk
            wanted["diversity"] = _Wanted(
                {"diversity": self._evaluation.describe("diversity"), "network": asdict(seen_by.identity)},
                self._evaluation.keys_of("diversity"),
                lambda batch, keys: diversity_distances(batch.variants(keys), seen_by),
            )
        if "upsampled" in there:
            wanted["upsampled"] = _Wanted(
                {"reconstruction": self._evaluation.describe("upsampled"), "truth": self._truth()},
                self._evaluation.keys_of("upsampled"),
                lambda batch, keys: reconstruction_qualities(batch.generated("upsampled", keys), batch.truths(keys)),
            )
        if self._config.data.modality in there and self._networks.aligner is not None:
            wanted |= self._wanted_alignment(self._networks.aligner)
        return wanted

    def _truth(self, small: bool = False) -> dict[str, Any]:
        return self._evaluation.describe_truth(self._sides[0 if small else 1])

    def _wanted_features(self, name: str, extractor: FeatureExtractor) -> dict[str, _Wanted]:
        """In float32, as the network gives them."""
        keys, network = self._evaluation.keys, asdict(extractor.identity)

        def features(pictures: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
            return features_of(pictures, extractor).values.float().numpy()

        generated = {"features": self._evaluation.describe("final"), "network": network, "dtype": "float32"}
        truth = {"features": self._truth(), "network": network, "dtype": "float32"}
        return {
            f"{name} features": _Wanted(generated, keys, lambda batch, keys: features(batch.generated("final", keys))),
            f"{name} truth": _Wanted(truth, keys, lambda batch, keys: features(batch.truths(keys))),
        }

    def _wanted_distances(self, name: PictureSetName, network: PerceptualNetwork) -> _Wanted:
        """Of each picture of a set to its truth."""
        small = name != "final"
        about = {
            "distances": self._evaluation.describe(name), "truth": self._truth(small), "network": asdict(network.identity),
        }  # fmt: skip
        return _Wanted(
            about,
            self._evaluation.keys,
            lambda batch, keys: lpips_distances(batch.generated(name, keys), batch.truths(keys, small), network),
        )

    def _wanted_errors(self, name: PictureSetName) -> _Wanted:
        """Root mean square, in levels, of each picture of the base network's size."""
        about = {"rmse": self._evaluation.describe(name), "truth": self._truth(small=True)}
        return _Wanted(
            about,
            self._evaluation.keys,
            lambda batch, keys: pixel_distances(batch.generated(name, keys), batch.truths(keys, small=True)),
        )

    def _wanted_alignment(self, aligner: Aligner) -> dict[str, _Wanted]:
        keys, truth = self._evaluation.keys, self._truth()
        network = None if aligner.network is None else asdict(aligner.network)
        about = {"alignment": aligner.about, "network": network, "conditions": truth}
        return {
            "alignment final": _Wanted(
                {**about, "of": self._evaluation.describe("final")},
                keys,
                lambda batch, keys: aligner.rows(batch.generated("final", keys), batch.conditions(keys)),
            ),
            "alignment truth": _Wanted(
                {**about, "of": truth},
                keys,
                lambda batch, keys: aligner.rows(batch.truths(keys), batch.conditions(keys)),
            ),
        }

    def features(self, network: FeatureNetwork) -> tuple[Features, Features]:
        """Of the final pictures and of the truth."""
        identity, size = self._networks.extractor(network).identity, (self._sides[1], self._sides[1])
        generated, truth = (torch.from_numpy(self._arrays[f"{network} {of}"]).double() for of in ("features", "truth"))
        return Features(generated, identity, size), Features(truth, identity, size)

    def perceptual(
        self, trunk: PerceptualTrunk, kind: Literal["distances", "diversity"]
    ) -> tuple[NDArray[np.float64], NetworkIdentity]:
        """Of the final pictures to the truth, or between those of each condition in the set `diversity`."""
        name = "diversity" if kind == "diversity" else f"{trunk} final"
        return self._arrays[name], self._networks.perceptual(trunk).identity

    def reconstruction(self) -> NDArray[np.float64]:
        """PSNR and SSIM of the set `upsampled`, (N, 2)."""
        return self._arrays["upsampled"]

    def alignment(self) -> Alignment:
        """Of the final pictures, and of the truth, to the conditions."""
        aligner = self._networks.aligner
        if aligner is None:
            raise ValueError("nothing is configured that compares pictures with conditions")
        generated, truth = self._arrays["alignment final"], self._arrays["alignment truth"]
        return Alignment(generated, truth, aligner.network, aligner.slug)

    def distances(self, name: PictureSetName = "final") -> NDArray[np.float64]:
        """LPIPS's distance of each picture of a set to its truth, in the order of the evaluation's keys."""
        return self._arrays[f"lpips_trunk {name}"]

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
            comparison[picture_set] = {
                "lpips": mean_metric(name, distances, identity),
                "rmse": mean_metric("rmse", self._arrays[f"rmse {picture_set}"]),
            }
            if previous is not None:
                comparison[picture_set]["lpips_gain"] = mean_metric(f"{name}_gain", previous - distances, identity)
            previous = distances
        return comparison


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED_AT_MOST]) + (" ..." if len(names) > _NAMED_AT_MOST else "")


def spread(values: NDArray[np.float64], count: int) -> dict[str, Sequence[int]]:
    """Numbers of the pictures with the `count` smallest, middle and largest distances (N,), each in rising order."""
    order = [int(number) for number in np.argsort(values, kind="stable")]
    count = min(count, len(order) // 3)
    middle = (len(order) - count) // 2
    return {"best": order[:count], "median": order[middle : middle + count], "worst": order[len(order) - count :]}


def _levels(picture: Tensor) -> NDArray[np.uint8]:
    """float (3, H, W) in [-1, 1] -> uint8 (H, W, 3)."""
    return np.ascontiguousarray(levels(picture).permute(1, 2, 0).numpy())
