"""The flows' parameters: the types and texts of the form in the Prefect UI."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

ConfigName = Annotated[str, Field(description="A preset's name (demo, ...) or the path of a YAML file", min_length=1)]
Overrides = Annotated[
    dict[str, Any] | None,
    Field(description='Dotted config keys to values, e.g. {"sampling.guidance_scale": 2.0}'),
]
AnotherConfig = Annotated[
    str | None, Field(description="The config whose variants are compared (default: the one that the study names)")
]
StudyName = Annotated[
    str, Field(description="A study's name (guidance, samplers, ...) or the path of a YAML file", min_length=1)
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
]
Upsampler = Annotated[
    str | None,
    Field(
        description="The upsampler to evaluate them with: a checkpoint folder or a file (default: that of the base's run)"
    ),
]
