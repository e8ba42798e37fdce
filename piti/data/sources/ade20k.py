"""ADE20K as distributed for scene parsing (ADEChallengeData2016): label maps of 150 classes, 0 for anything else."""

from __future__ import annotations

from piti.config import Ade20kSourceConfig, DataConfig
from piti.data.items import Split
from piti.data.sources.places import archive_forms
from piti.data.sources.splits import Layout, SplitSource

_NAME = "ADEChallengeData2016"
_FOLDERS: dict[Split, str] = {"train": "training", "validation": "validation"}


def _candidates(part: str) -> dict[Split, list[str]]:
    bases = ["", f"{_NAME}/", *(f"{archive}/{_NAME}/" for archive in archive_forms(_NAME))]
    return {split: [f"{base}{part}/{folder}" for base in bases] for split, folder in _FOLDERS.items()}


LAYOUT = Layout(
    name="ADE20K",
    images=_candidates("images"),
    labels=_candidates("annotations"),
    num_classes=151,
    expected="images/training, images/validation, annotations/training and annotations/validation, "
    "directly, in ADEChallengeData2016/ or in ADEChallengeData2016.zip",
)


def ade20k_source(config: Ade20kSourceConfig, data: DataConfig) -> SplitSource:
    """The source that a config describes."""
    return SplitSource(config.root, LAYOUT, data)
