"""Weights files that a person downloads once: listing those a config needs, checking them, and opening them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from piti import storage
from piti.config import Config, WeightsRef
from piti.errors import CheckpointError, PitiError


@dataclass(frozen=True)
class NeededWeights:
    """A weights file that a config needs: its dotted key, the reference (None: not configured), and its origin for
    errors."""

    key: str
    ref: WeightsRef | None
    origin: str


@dataclass(frozen=True)
class WeightsFile:
    """A pinned file while it is open: `path` on this machine, `uri` as configured, `sha256` as found."""

    path: Path
    uri: str
    sha256: str


@contextmanager
def open_weights(ref: WeightsRef, key: str, origin: str = "them") -> Iterator[WeightsFile]:
    """Find, fetch and hash a weights file, local or remote. A remote file's copy is deleted afterwards.

    `key` is the config's dotted key and `origin` where to get the file, for errors. Raises CheckpointError if the file
    is missing or its hash is not `ref.sha256`.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = storage.fetch(ref.path, Path(folder) / storage.name(ref.path))
            found = storage.sha256_file(str(path))
        except (FileNotFoundError, IsADirectoryError) as error:
            raise CheckpointError(
                f"{key}: there is no file {ref.path}", f"download {origin} there, or correct the path"
            ) from error
        if ref.sha256 is not None and found != ref.sha256:
            raise CheckpointError(
                f"{key}: {ref.path} has sha256 {found}, the config pins {ref.sha256}",
                f"download {origin} again, or correct the pin",
            )
        yield WeightsFile(path, ref.path, found)


def weights_digest(ref: WeightsRef | None) -> str | None:
    """The sha256 of a weights file for fingerprints: the pinned one, else that of the file. None for None.

    Raises CheckpointError if a file without a pin is missing.
    """
    if ref is None or ref.sha256 is not None:
        return None if ref is None else ref.sha256
    with open_weights(ref, ref.path) as file:
        return file.sha256


def feature_networks(config: Config, training: bool) -> list[NeededWeights]:
    """The fixed feature networks of metrics and, with `training`, of losses."""
    evaluation, upsampler = config.evaluation, config.training.upsampler
    inception = "torch-fidelity's weights-inception-2015-12-05-6726825d.pth"
    needed = [
        NeededWeights("evaluation.inception", evaluation.inception, inception),
        NeededWeights("evaluation.lpips_trunk", evaluation.lpips_trunk, "torchvision's alexnet-owt-7be5be79.pth"),
    ]
    if training and upsampler.perceptual_weight > 0:
        needed.append(NeededWeights("training.upsampler.vgg19", upsampler.vgg19, "torchvision's vgg19-dcbb9e9d.pth"))
    return needed


def weights_problems(config: Config, training: bool = True) -> list[PitiError]:
    """One problem for each weights file that is missing or whose sha256 is wrong.

    Without `training`, files that only training needs are skipped. The sketch detector is always checked, since
    evaluation uses it, too.

    A feature network without weights is a problem unless the config allows stand-ins (demo.yaml does).
    `piti.models.pretrained.pretrained_problems` checks the pretrained weights.
    """
    problems: list[PitiError] = [
        CheckpointError(
            f"{needed.key} is not set", f"download {needed.origin} and set {needed.key}.path to where you put it"
        )
        for needed in feature_networks(config, training)
        if needed.ref is None and not config.allow_stand_in_networks
    ]
    optional = [
        NeededWeights("data.sketch.weights", config.data.sketch.weights, "network-bsds500.pytorch"),
        NeededWeights("evaluation.clip", config.evaluation.clip, "OpenAI's ViT-B-32.pt"),
        NeededWeights("evaluation.vgg16", config.evaluation.vgg16, "torchvision's vgg16-397923af.pth"),
        *(
            NeededWeights(f"evaluation.{key}", ref, "yours")
            for key, ref in config.evaluation.files.items()
            if key.startswith("alignment.")
        ),
    ]
    for needed in (*feature_networks(config, training), *optional):
        if needed.ref is not None:
            problems.extend(file_problems(needed.key, needed.ref, needed.origin))
    return problems


def unpinned_keys(config: Config) -> list[str]:
    """Keys of the files that training depends on and that steps know by their path alone."""
    refs = {
        "pretrained.base.sha256": config.pretrained.base,
        "pretrained.upsampler.sha256": config.pretrained.upsampler,
        "training.upsampler.vgg19.sha256": config.training.upsampler.vgg19,
    }
    return [key for key, ref in refs.items() if ref is not None and ref.sha256 is None]


def file_problems(key: str, ref: WeightsRef, origin: str = "them") -> Iterator[PitiError]:
    """Problems of a weights file: a pinned file is hashed; any other only has to exist."""
    if ref.sha256 is None and storage.exists(ref.path):
        return
    try:
        with open_weights(ref, key, origin):
            pass
    except CheckpointError as problem:
        yield problem
