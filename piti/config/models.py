"""The sections `models` and `diffusion`: sizes of the networks, and the process that they learn to reverse."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from piti.config.section import Positive, Section, Share

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
