"""The flows' parameters: the types and texts of the form in the Prefect UI."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo

from piti.credentials import refuse_credentials


def _without_credentials(value: Any, info: ValidationInfo) -> Any:
    """Before anything repeats a parameter: the run's name, its state, its log. A ConfigError, since Prefect would log
    all parameters for a ValueError."""
    refuse_credentials(value, f"the parameter {info.field_name}")
    return value


_CHECKED = BeforeValidator(_without_credentials)

ConfigName = Annotated[
    str, Field(description="A preset's name (demo, ...) or the path of a YAML file", min_length=1), _CHECKED
]
Overrides = Annotated[
    dict[str, Any] | None,
    Field(description='Dotted config keys to values, e.g. {"sampling.guidance_scale": 2.0}'),
    _CHECKED,
]
AnotherConfig = Annotated[
    str | None,
    Field(description="The config whose variants are compared (default: the one that the study names)"),
    _CHECKED,
]
StudyName = Annotated[
    str,
    Field(description="A study's name (guidance, samplers, ...) or the path of a YAML file", min_length=1),
    _CHECKED,
]
StepName = Literal["shard", "degrade", "pretrain", "stage1", "stage2", "upsampler", "sample"]
StartFrom = Annotated[
    StepName | None,
    Field(description="Start at this step. Earlier steps must be finished; they are not run."),
]
Checkpoints = Annotated[
    Literal["new", "latest", "all"] | list[str],
    Field(
        description="Which base networks to evaluate: checkpoints without a report, the latest, all, or a list of "
        "checkpoint folders and files of GLIDE's or PITI's weights"
    ),
    _CHECKED,
]
Upsampler = Annotated[
    str | None,
    Field(
        description="The upsampler to evaluate them with: a checkpoint folder or a file (default: that of the base's run)"
    ),
    _CHECKED,
]
