"""The sections `training` and `pretrained`: what each stage learns, and from which weights it begins."""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from piti.config.section import Positive, Section, Share, WeightsRef

Stage = Literal["pretrain", "stage1", "stage2", "upsampler"]
STAGES: tuple[Stage, ...] = get_args(Stage)
STAGE_LABELS: dict[str, str] = {
    "untrained": "untrained", "pretrain": "pretraining", "stage1": "stage 1", "stage2": "stage 2",
    "upsampler": "upsampler",
}  # fmt: skip


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
