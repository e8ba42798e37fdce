"""Weights that somebody has to download once: which a config needs, and whether they are there and right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from piti import storage
from piti.config import Config, ModelConfig, WeightsRef
from piti.errors import CheckpointError, PitiError


@dataclass(frozen=True)
class NeededWeights:
    """A weights file a config wants: its dotted key, the reference (None: not configured), and where it comes from."""

    key: str
    ref: WeightsRef | None
    origin: str


def feature_networks(config: Config) -> list[NeededWeights]:
    """The fixed networks that losses and metrics look through."""
    perceptual = config.training.upsampler
    needed = [
        NeededWeights(
            "evaluation.inception",
            config.evaluation.inception,
            "torch-fidelity's weights-inception-2015-12-05-6726825d.pth",
        ),
        NeededWeights(
            "evaluation.lpips_trunk", config.evaluation.lpips_trunk, "torchvision's alexnet-owt-7be5be79.pth"
        ),
    ]
    if perceptual.perceptual_weight > 0:
        needed.append(NeededWeights("training.upsampler.vgg19", perceptual.vgg19, "torchvision's vgg19-dcbb9e9d.pth"))
    return needed


def weights_problems(config: Config) -> list[PitiError]:
    """Every weights file that is missing, misplaced or other than its sha256 says.

    A feature network without weights is a problem unless the config allows untrained ones (demo.yaml does).
    """
    problems: list[PitiError] = []
    for needed in feature_networks(config):
        if needed.ref is None and not config.allow_untrained_feature_networks:
            problems.append(
                CheckpointError(
                    f"{needed.key} is not set",
                    f"download {needed.origin} and set {needed.key}.path to where you put it",
                )
            )
    for needed in feature_networks(config):
        if needed.ref is not None:
            problems.extend(_file_problems(needed.key, needed.ref))
    if config.data.sketch.weights is not None:
        problems.extend(_file_problems("data.sketch.weights", config.data.sketch.weights))
    for network, ref in (("base", config.pretrained.base), ("upsampler", config.pretrained.upsampler)):
        if ref is not None:
            problems.extend(_pretrained_problems(f"pretrained.{network}", ref, getattr(config.models, network)))
    return problems


def _pretrained_problems(key: str, ref: WeightsRef, model: ModelConfig) -> Iterator[PitiError]:
    """Files on this machine are also looked into; what lies elsewhere is when the stage that needs it fetches it."""
    if not storage.is_local(ref.path) or not storage.exists(ref.path):
        yield from _file_problems(key, ref)
        return
    from piti.models.checkpoints import check_pretrained  # imports torch, which most preflights can do without

    try:
        check_pretrained(model, ref)
    except CheckpointError as problem:
        yield CheckpointError(f"{key}: {problem}")


def _file_problems(key: str, ref: WeightsRef) -> Iterator[PitiError]:
    if not storage.exists(ref.path):
        yield CheckpointError(f"{key}.path: there is no file {ref.path}", "download it there, or correct the path")
    elif ref.sha256 is not None and (found := storage.sha256_file(ref.path)) != ref.sha256:
        yield CheckpointError(
            f"{key}: {ref.path} has sha256 {found}, expected {ref.sha256}", "download it again, or correct the sha256"
        )
