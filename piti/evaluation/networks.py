"""The fixed networks that figures are measured with, as a config asks for them. See `piti.weights` for preflight."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from eval.features import FeatureExtractor, InceptionFeatures, UntrainedFeatures
from eval.lpips import LpipsNetwork
from eval.pictures import WeightsError
from piti.config import Config, WeightsRef
from piti.errors import CheckpointError
from piti.weights import open_weights

Opened = TypeVar("Opened")

_UNTRAINED_SEED = 0  # the same in every run, so that figures of different runs can be put beside each other


def open_extractor(config: Config, device: str = "cpu") -> FeatureExtractor:
    """The network of FID and KID: InceptionV3 from `evaluation.inception`, or the untrained one where allowed.

    Raises CheckpointError where weights are missing, damaged, or not configured and not dispensable.
    """
    ref = config.evaluation.inception
    if ref is None:
        _check_untrained_allowed(config, "evaluation.inception")
        return UntrainedFeatures(_UNTRAINED_SEED)
    return _opened(ref, "evaluation.inception", lambda path: InceptionFeatures(path, ref.sha256, device))


def open_perceptual_network(config: Config, device: str = "cpu") -> LpipsNetwork:
    """The network of LPIPS: with the trunk from `evaluation.lpips_trunk`, or an untrained one where allowed.

    Raises CheckpointError as `open_extractor` does.
    """
    ref = config.evaluation.lpips_trunk
    if ref is None:
        _check_untrained_allowed(config, "evaluation.lpips_trunk")
        return LpipsNetwork(seed=_UNTRAINED_SEED, device=device)
    return _opened(ref, "evaluation.lpips_trunk", lambda path: LpipsNetwork(path, ref.sha256, device=device))


def _check_untrained_allowed(config: Config, key: str) -> None:
    if not config.allow_untrained_feature_networks:
        raise CheckpointError(
            f"{key} is not set, and config {config.name} does not allow untrained feature networks",
            f"download the weights and set {key}.path to where you put them",
        )


def _opened(ref: WeightsRef, key: str, opener: Callable[[Path], Opened]) -> Opened:
    with open_weights(ref, key) as file:
        try:
            return opener(file.path)
        except WeightsError as error:
            raise CheckpointError(f"{key}: {error}", "download it again, or correct the path or sha256") from error
