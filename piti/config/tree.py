"""The typed tree of a run's whole config. Presets are whole files in configs/*.yaml.

`piti.config.presets.load_config` reads it. Construction raises ValidationError for unknown keys, wrong types and
contradictions. The sections `cluster` and `tracking` stand here, the others in files of their own.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from piti.config.data import CONDITION_CHANNELS, DataConfig, DegradationConfig
from piti.config.evaluation import EvaluationConfig, SamplingConfig
from piti.config.models import DiffusionConfig, ModelsConfig
from piti.config.section import Positive, Section, require_known_scheme
from piti.config.training import PretrainedConfig, Stage, StageConfig, TrainingConfig


class WorkerRange(Section):
    """An elastic number of training workers: as many as fit on the cluster, from `min` to `max`."""

    min: Positive
    max: Positive

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is larger than max {self.max}")
        return self


def _is_range(value: object) -> str:
    return "WorkerRange" if isinstance(value, dict | WorkerRange) else "number"


class ClusterConfig(Section):
    """What a job asks of the Ray cluster. `num_workers` training workers, each with these resources (fewer in a stage
    whose batch has fewer pictures). A range {min, max} is elastic: training starts with as many workers as fit, goes on
    with fewer when a node is lost, and adds workers when more fit. The batch and the result stay the same.

    `max_cpus` and `max_gpus`: the largest size of a cluster that grows by itself, for preflight; None: the present
    nodes. A worker that makes no step for `stall_seconds` (for its first step at least 600) writes its stacks to the
    log and ends; the run is tried again. `start_seconds`: how long a fixed number of workers may take to get room and
    to start, nodes that are still to come included; then all are asked for anew. `preemption_grace_seconds`: how
    long a last checkpoint may be written after a node was taken away, by the workers that stay.

    `strategy`: with `ddp` every worker holds the whole network, its average and its optimizer; with `fsdp` a part of what
    is trained, for networks that do not fit one GPU otherwise.

    A job that no run has followed for `abandoned_job_seconds` writes a last checkpoint and ends; `never` keeps it
    running.
    """

    num_workers: Annotated[
        Annotated[Positive, Tag("number")] | Annotated[WorkerRange, Tag("WorkerRange")], Discriminator(_is_range)
    ] = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"
    use_gpu: bool = False
    cpus_per_worker: Positive = 1
    max_cpus: Positive | None = None
    max_gpus: Positive | None = None
    loader_workers: Annotated[int, Field(ge=0)] = 2
    max_failures: Annotated[int, Field(ge=0)] = 3
    max_attempts: Positive = 3
    abandoned_job_seconds: Annotated[float, Field(gt=0)] | Literal["never"] = 600.0
    stall_seconds: Annotated[float, Field(gt=0)] = 1800.0
    start_seconds: Annotated[float, Field(gt=0)] = 300.0
    preemption_grace_seconds: Annotated[float, Field(gt=0)] = 60.0

    @property
    def workers(self) -> WorkerRange:
        """`num_workers` as a range."""
        number = self.num_workers
        return number if isinstance(number, WorkerRange) else WorkerRange(min=number, max=number)


class TrackingConfig(Section):
    """Who is told the figures and pictures of training, besides metrics.jsonl and TensorBoard's `<run>/tensorboard/`.

    `mlflow`: the tracking URI of MLflow. `wandb`: Weights & Biases, which sends them at once (online) or leaves them in
    `<run>/wandb/` for `wandb sync` (offline). Experiment and project are the config's `name`; access is by their own
    environment variables. A tracker that fails is logged and tried again; training goes on.
    """

    mlflow: str | None = None
    wandb: Literal["offline", "online"] | None = None


class Config(Section):
    """The whole config of a run. configs/ has examples, docs/configuration.md describes the sections."""

    name: Annotated[str, Field(pattern="^[a-z0-9][a-z0-9-]*$")]
    root: Annotated[str, Field(min_length=1, pattern=r"^[^\x00-\x1f]+$")]
    seed: Annotated[int, Field(ge=0)] = 0
    data: DataConfig
    degradation: DegradationConfig = DegradationConfig()
    models: ModelsConfig = ModelsConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    pretrained: PretrainedConfig = PretrainedConfig()
    training: TrainingConfig
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()
    allow_stand_in_networks: bool = False

    @field_validator("root")
    @classmethod
    def _in_a_known_place(cls, root: str) -> str:
        require_known_scheme(root)
        return root

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        base, upsampler = self.models.base, self.models.upsampler
        channels = CONDITION_CHANNELS[self.data.modality]
        problems = [
            f"models.{which}.condition_channels is {model.condition_channels}, modality {self.data.modality} has {channels}"
            for which, model in (("base", base), ("upsampler", upsampler))
            if model.condition_channels != channels
        ]
        problems += [
            f"models.{which}.condition_size is {model.condition_size}, data.image_size is {self.data.image_size}"
            for which, model in (("base", base), ("upsampler", upsampler))
            if model.condition_size != self.data.image_size
        ]
        if base.super_resolution or not upsampler.super_resolution:
            problems.append("models.base.super_resolution must be false, models.upsampler.super_resolution true")
        if upsampler.image_size != self.data.image_size:
            problems.append(
                f"models.upsampler.image_size is {upsampler.image_size}, data.image_size is {self.data.image_size}"
            )
        if upsampler.image_size % base.image_size:
            problems.append("models.upsampler.image_size must be a multiple of models.base.image_size")
        if self.evaluation.alignment is not None and self.data.modality == "sketch":
            problems.append("evaluation.alignment has no effect with sketches: leave it out")
        if self.pretrained.base is None and self.training.pretrain is None and not self.pretrained.from_scratch:
            problems.append("give pretrained.base (GLIDE's base.pt, say) or a training.pretrain stage")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def scale(self) -> int:
        """Enlargement factor of the upsampler."""
        return self.models.upsampler.image_size // self.models.base.image_size

    def workers(self, stage: Stage) -> WorkerRange:
        """Number of training workers of a stage: `cluster.num_workers`, but at most one for each picture of a batch."""
        workers, settings = self.cluster.workers, self.stage(stage)
        if settings is None:
            return workers
        return WorkerRange(min=min(workers.min, settings.batch_size), max=min(workers.max, settings.batch_size))

    def stage(self, stage: Stage) -> StageConfig | None:
        """The settings of a training stage; None for a pretraining that is not configured."""
        settings: StageConfig | None = getattr(self.training, stage)
        return settings
