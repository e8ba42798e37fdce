"""Config of a study, which compares variants of one config. Shipped studies are whole files in studies/*.yaml."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self, TypedDict

from pydantic import Field, ValidationError, model_validator

from piti.config.files import nearest, read_yaml
from piti.config.section import Section
from piti.config.tree import Config
from piti.credentials import refuse_credentials
from piti.errors import ConfigError

STUDIES = Path(__file__).resolve().parent.parent / "studies"

# Keys of every study. A file without them is not a study, and errors must not quote its keys.
_OWN_KEYS = ("name", "question", "config", "variants")

Name = Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[^\x00-\x1f]+$")]
Overrides = dict[str, Any]


class VariantConfig(Section):
    """One line of the study's table: the base config with dotted overrides, of sampling or of training.

    With `seeds`, the variant is run once for each (they override `seed`), and its figures are means over them.
    """

    name: Name
    overrides: Overrides = Field(default_factory=dict)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = ()


class StudyConfig(Section):
    """The variants of `config` to compare, and the question that they answer.

    `overrides` apply to all variants. Differences are computed against the variant `baseline` (default: the first).
    `axis` is a dotted key against which figures are plotted, besides the plot against seconds a picture. With
    `checkpoint`, and `upsampler` where it has none of its own, the variants draw with these networks and train nothing.
    """

    name: Annotated[str, Field(pattern="^[a-z0-9][a-z0-9-]*$")]
    question: Annotated[str, Field(min_length=1, max_length=400)]
    config: Name
    overrides: Overrides = Field(default_factory=dict)
    variants: Annotated[tuple[VariantConfig, ...], Field(min_length=2)]
    baseline: Name | None = None
    axis: Name | None = None
    checkpoint: Name | None = None
    upsampler: Name | None = None

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names):
            raise ValueError("two variants have the same name")
        if self.baseline is not None and self.baseline not in names:
            raise ValueError(f"baseline {self.baseline!r} is no variant{nearest(self.baseline, names)}")
        return self

    @property
    def compared_to(self) -> str:
        """Name of the variant against which differences are computed."""
        return self.baseline or self.variants[0].name

    def runs(self) -> list[tuple[VariantConfig, int | None, Overrides]]:
        """Each variant with each of its seeds (None: the config's own), and all overrides for it."""
        return [
            (variant, seed, {**self.overrides, **variant.overrides, **({} if seed is None else {"seed": seed})})
            for variant in self.variants
            for seed in (variant.seeds or (None,))
        ]


class StudiedRun(TypedDict):
    """One run of a variant, as the flow passes it to the job. `position`: the run's value on the study's axis."""

    variant: str
    seed: int | None
    overrides: dict[str, Any]
    position: float | None
    report: str
    pictures: str
    sample: str


def position_on(config: Config, axis: str | None) -> float | None:
    """The number at a dotted key of a config; None if the value is not a number."""
    value: Any = config.model_dump(mode="json")
    for part in (axis or "").split("."):
        value = value.get(part) if isinstance(value, dict) else None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def study_names() -> list[str]:
    """Names of the studies that ship with the project."""
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


def read_study(study: str, folders: Sequence[str] | None) -> StudyConfig:
    """A shipped study by name, or a file by path below one of `folders` (None: anywhere).

    Raises ConfigError that lists every problem.
    """
    tree = read_yaml(study, "study", STUDIES, study_names(), folders)
    if missing := [key for key in _OWN_KEYS if key not in tree]:
        raise ConfigError(
            f"{study} is no study of this project: it lacks {', '.join(missing)}",
            "docs/evaluation.md shows what a study holds",
        )
    refuse_credentials(tree, f"study {study!r}")
    try:
        return StudyConfig.model_validate(tree)
    except ValidationError as error:
        problems = (
            f"{'.'.join(str(part) for part in detail['loc']) or 'study'}: {detail['msg'].removeprefix('Value error, ')}"
            for detail in error.errors()
        )
        raise ConfigError(f"study {study!r}: " + "; ".join(problems)) from error
