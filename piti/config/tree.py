"""The typed tree of a run's whole config. Presets are whole files in configs/*.yaml.

`piti.config.presets.load_config` reads it. Construction raises ValidationError for unknown keys, wrong types and
contradictions.
"""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Literal, Self, get_args

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from piti.config.data import CONDITION_CHANNELS, DataConfig, DegradationConfig
from piti.config.section import Positive, ProgramRef, Section, Share, WeightsRef, require_known_scheme

Stage = Literal["pretrain", "stage1", "stage2", "upsampler"]
FigureKind = Literal[
    "fid", "kid", "clip_fid", "precision", "recall", "lpips", "lpips_vgg", "lpips_diversity", "psnr", "ssim",
    "miou", "miou_small", "miou_medium", "miou_large", "edge_f1", "depth_order_error", "normal_error",
]  # fmt: skip
STAGES: tuple[Stage, ...] = get_args(Stage)
STAGE_LABELS: dict[str, str] = {
    "untrained": "untrained", "pretrain": "pretraining", "stage1": "stage 1", "stage2": "stage 2",
    "upsampler": "upsampler",
}  # fmt: skip
ENCODER_STRIDE = 16  # the task encoder's four stride-2 convolutions


class ModelConfig(Section):
    """Sizes of one network (task encoder + GLIDE decoder), defaults as published for the 64x64 base.

    `attention_resolutions` are feature-map sides in pixels at which the decoder attends. `condition_size` is the side
    of the condition in pixels; the encoder makes (condition_size / 16)^2 tokens and one class token of it. The
    published networks have the defaults of `norm_groups`, `attention_reach` and `encoder_norm`. Other values add no
    weights, and help small networks to follow a condition early in training. Each of the decoder's norms has
    `norm_groups` groups of channels; a group of a single channel (32 channels in 32 groups) loses that channel's mean,
    and with it the picture's brightness. `attention_reach` r multiplies attention weights by a Gaussian of the distance
    between two positions, with standard deviation r in sides of the picture; None: distance does not matter.
    `encoder_norm` layer normalises the encoder's convolutions over channels and positions together; instance, over
    positions alone, removes the absolute colour of a condition.
    """

    image_size: Positive = 64
    super_resolution: bool = False
    model_channels: Positive = 192
    channel_mult: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 2, 3, 4)
    num_res_blocks: Positive = 3
    attention_resolutions: tuple[Positive, ...] = (32, 16, 8)
    num_head_channels: Positive = 64
    dropout: Share = 0.1
    condition_channels: Positive = 3
    condition_size: Positive = 256
    encoder_width: Positive = 512
    encoder_layers: Positive = 8
    encoder_heads: Positive = 8
    norm_groups: Literal[1, 2, 4, 8, 16, 32] = 32
    attention_reach: Annotated[float, Field(gt=0)] | None = None
    encoder_norm: Literal["instance", "layer"] = "instance"
    activation_checkpointing: bool = False

    @classmethod
    def base(cls, condition_channels: int = 3) -> Self:
        """The published 64x64 base model (338.0 M parameters)."""
        return cls(condition_channels=condition_channels)

    @classmethod
    def upsampler(cls, condition_channels: int = 3) -> Self:
        """The published 64 -> 256 upsampler (351.3 M parameters)."""
        return cls(
            image_size=256,
            super_resolution=True,
            channel_mult=(1, 1, 2, 2, 4, 4),
            num_res_blocks=2,
            condition_channels=condition_channels,
        )

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        factor = 2 ** (len(self.channel_mult) - 1)
        if self.image_size % factor:
            raise ValueError(
                f"image_size {self.image_size} must be divisible by {factor} ({len(self.channel_mult)} levels)"
            )
        if self.condition_size % ENCODER_STRIDE:
            raise ValueError(f"condition_size {self.condition_size} must be divisible by {ENCODER_STRIDE}")
        if self.encoder_width % self.encoder_heads or self.encoder_width % 16:
            raise ValueError(f"encoder_width {self.encoder_width} must be divisible by encoder_heads and by 16")
        if self.model_channels % 32:
            raise ValueError(f"model_channels {self.model_channels} must be divisible by 32 (group norm)")
        return self


class ModelsConfig(Section):
    """The two networks of the cascade."""

    base: ModelConfig = ModelConfig.base()
    upsampler: ModelConfig = ModelConfig.upsampler()


class ScheduleConfig(Section):
    """The forward process of one network (equation 1), and the quantity that the network predicts.

    `prediction`: `noise` as published; `v` is sqrt(a_t) noise - sqrt(1 - a_t) x_0 (Salimans and Ho, 2022): where noise
    hides the picture, its loss is that of the picture itself, so a small network learns from the first step to follow
    the condition.
    """

    schedule: Literal["linear", "squaredcos_cap_v2"] = "squaredcos_cap_v2"
    steps: Positive = 1000
    prediction: Literal["noise", "v"] = "noise"


class DiffusionConfig(Section):
    base: ScheduleConfig = ScheduleConfig()
    upsampler: ScheduleConfig = ScheduleConfig(schedule="linear")


class PhaseConfig(Section):
    """A stretch of a training stage. `condition_dropout` is the share of samples trained on the null condition.

    The learning rate rises linearly over `warmup_steps`. Then it stays constant, or with `decay` cosine falls to zero
    at the end of the phase. As in the published runs, a phase begins from the averaged weights of the one before, with
    a fresh optimizer and a fresh timestep sampler. The checkpoint at the end of the phase is kept.
    """

    steps: Positive
    learning_rate: Annotated[float, Field(gt=0)]
    condition_dropout: Share = 0.2
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    decay: Literal["none", "cosine"] = "none"

    @model_validator(mode="after")
    def _warms_up_in_time(self) -> Self:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be fewer than the phase's steps ({self.steps})")
        return self

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step `step` of the phase, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / (self.warmup_steps + 1)
        if self.decay == "none":
            return self.learning_rate
        share = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
        return self.learning_rate * (1 + math.cos(math.pi * share)) / 2


class StageConfig(Section):
    """One training stage. `batch_size`: pictures a step, over all workers.

    `ema_rate` is the decay of the averaged weights; with `ema_warmup` it is min(ema_rate, (1 + step) / (10 + step)) in
    the steps of a phase, which matters for short runs. Checkpoints are deleted except the newest `keep_checkpoints`,
    those at multiples of `keep_every_steps` steps, those at the end of a phase, and those that an evaluation reads.
    `gradient_clip` None: no clipping. `precision`: float32 throughout, float32 whose products are TF32's on GPUs that
    have it, or bf16 in the networks. Every `sample_every_steps` the averaged weights draw pictures of the same
    validation conditions; None: never.
    """

    phases: Annotated[tuple[PhaseConfig, ...], Field(min_length=1)]
    batch_size: Positive = 128
    microbatch_size: Positive | None = None
    ema_rate: Share = 0.9999
    ema_warmup: bool = False
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    gradient_clip: Annotated[float, Field(gt=0)] | None = None
    timestep_sampler: Literal["uniform", "loss-second-moment"] = "loss-second-moment"
    precision: Literal["fp32", "tf32", "bf16"] = "bf16"
    compile: bool = False
    validate_every_steps: Positive = 5000
    validation_samples: Positive = 256
    sample_every_steps: Positive | None = None
    checkpoint_every_steps: Positive = 1000
    keep_checkpoints: Positive = 3
    keep_every_steps: Positive | None = None
    log_every_steps: Positive = 50

    @property
    def total_steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def phase_at(self, step: int) -> PhaseConfig:
        """The phase that optimizer step number `step` (from 0) belongs to."""
        return next(
            (phase for phase, end in zip(self.phases, self.phase_ends, strict=True) if step < end), self.phases[-1]
        )

    @property
    def phase_ends(self) -> tuple[int, ...]:
        """Steps taken at the end of each phase, counted over the whole stage."""
        return tuple(itertools.accumulate(phase.steps for phase in self.phases))

    def step_in_phase(self, step: int) -> int:
        """Position of optimizer step number `step` (from 0) within its phase, from 0."""
        return step - max((end for end in self.phase_ends[:-1] if end <= step), default=0)


class UpsamplerStageConfig(StageConfig):
    """The upsampler's stage: noise losses plus perceptual (eq. 4) and adversarial (eq. 5) terms on predicted x_0."""

    timestep_sampler: Literal["uniform", "loss-second-moment"] = "uniform"
    perceptual_weight: Annotated[float, Field(ge=0)] = 0.004
    adversarial_weight: Annotated[float, Field(ge=0)] = 0.01
    picture_losses_from_step: Annotated[int, Field(ge=0)] = 100
    discriminator_channels: Positive = 64
    discriminator_layers: Positive = 3
    discriminator_learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    gradient_penalty: Annotated[float, Field(ge=0)] = 10.0
    vgg19: WeightsRef | None = None


class TrainingConfig(Section):
    """The stages; `pretrain` is used only where no pretrained base is given."""

    pretrain: StageConfig | None = None
    stage1: StageConfig
    stage2: StageConfig
    upsampler: UpsamplerStageConfig


class PretrainedConfig(Section):
    """Checkpoints to train from: GLIDE's base.pt and upsample.pt, PITI's, or ours.

    `from_scratch`: stage 1 begins from random weights, for comparison with pretrained ones.
    """

    base: WeightsRef | None = None
    upsampler: WeightsRef | None = None
    from_scratch: bool = False

    @model_validator(mode="after")
    def _one_beginning(self) -> Self:
        if self.from_scratch and self.base is not None:
            raise ValueError("from_scratch and base exclude each other")
        return self


class SamplingConfig(Section):
    """How pictures are drawn. `guidance_scale` is s = 1 + w of equation 7; 1 means no guidance.

    `base_respacing`/`upsampler_respacing`: a number of steps, a section list, `ddimN`, `fast27`, or `logsnrN`: N steps
    at even distances of log-SNR, the spacing for `dpm++` and the only one for `unipc`. A worker draws
    `pictures_per_part` pictures, `batch_size` at a time, and then stores them as one tar: a killed worker loses at most
    that many. The first `diversity_conditions` conditions get `diversity_samples` more pictures each; for the first
    `upsampled_conditions` the upsampler also draws one from the truth's own low-resolution picture.
    """

    base_sampler: Literal["ddpm", "ddim", "dpm++", "unipc"] = "ddpm"
    base_respacing: str = "250"
    guidance_scale: Annotated[float, Field(ge=0)] = 1.5
    normalized_guidance: bool = True
    upsampler_sampler: Literal["ddpm", "ddim", "dpm++", "unipc"] = "ddpm"
    upsampler_respacing: str = "fast27"
    upsampler_noise_scale: Annotated[float, Field(gt=0)] = 0.997
    num_samples: Positive | None = None
    pictures_per_part: Positive = 64
    batch_size: Positive = 16
    precision: Literal["fp32", "bf16"] = "bf16"
    diversity_conditions: Annotated[int, Field(ge=0)] = 0
    diversity_samples: Annotated[int, Field(ge=2)] = 4
    upsampled_conditions: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _batches_fit_parts(self) -> Self:
        if self.batch_size > self.pictures_per_part:
            raise ValueError(
                f"batch_size {self.batch_size} is larger than pictures_per_part ({self.pictures_per_part}): raise that too"
            )
        return self

    @model_validator(mode="after")
    def _unipc_has_its_spacing(self) -> Self:
        for network in ("base", "upsampler"):
            sampler, respacing = getattr(self, f"{network}_sampler"), getattr(self, f"{network}_respacing")
            if sampler == "unipc" and not respacing.startswith("logsnr"):
                raise ValueError(
                    f"{network}_sampler unipc with {network}_respacing {respacing!r} overshoots between uneven steps: use "
                    "logsnrN (logsnr50, say), or the sampler dpm++"
                )
        return self


class AlignmentConfig(Section):
    """A network of yours that measures whether pictures follow their label maps or geometry. Sketches need none: edges
    are detected with the detector of the conditions.

    `network` is a TorchScript file, or torch.export's `*.pt2`, that takes float32 (N, 3, H, W), RGB. For masks it gives
    scores (N, C, h, w) or labels (N, h, w); for geometry depth (N, 1, h, w), or depth and normals (N, 4, h, w).
    `labels`: a CSV file with the columns network,label that maps the network's classes to labels of the data; classes
    that are not listed match nothing. None: classes and labels are the same. `farther`: whether a farther point has a
    higher value (depth) or a lower one (disparity). `input_side`: side in pixels to which pictures are resized; None:
    their own size.
    """

    network: ProgramRef
    labels: WeightsRef | None = None
    input_levels: Literal["imagenet", "unit", "signed", "levels"] = "imagenet"
    input_side: Positive | None = None
    farther: Literal["higher", "lower"] = "higher"


class EvaluationConfig(Section):
    """What an evaluation measures. `compare_stages` also draws base-size pictures from stage 1 and from the untrained
    model.

    Without `clip` (OpenAI's ViT-B-32.pt) there is no CLIP-FID; without `vgg16` (torchvision's vgg16-397923af.pth) no
    precision, no recall and no LPIPS (VGG); without `alignment` no mIoU and no error of depth and normals. `resize`
    names the library whose resizing is used for the network of FID and KID. `on_checkpoint`: for which checkpoints of
    stage 2 Prefect starts a run of piti/evaluate as training finishes them (none; final, the last one; every).
    `published`: scores to reproduce, by kind of figure; the report shows them beside comparable figures.
    """

    inception: WeightsRef | None = None
    lpips_trunk: WeightsRef | None = None
    clip: WeightsRef | None = None
    vgg16: WeightsRef | None = None
    alignment: AlignmentConfig | None = None
    resize: Literal["torch-fidelity", "clean-fid"] = "torch-fidelity"
    compare_stages: bool = False
    grid_samples: Positive = 8
    on_checkpoint: Literal["none", "final", "every"] = "none"
    published: dict[FigureKind, float] = Field(default_factory=dict)

    @property
    def files(self) -> dict[str, WeightsRef | None]:
        """Every file that figures depend on, by its key below `evaluation`."""
        names = ("inception", "lpips_trunk", "clip", "vgg16")
        alignment = self.alignment
        return {name: getattr(self, name) for name in names} | {
            "alignment.network": None if alignment is None else alignment.network,
            "alignment.labels": None if alignment is None else alignment.labels,
        }


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
    log and ends; the run is tried again.

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
