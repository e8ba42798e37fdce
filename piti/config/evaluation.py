"""The sections `sampling` and `evaluation`: how pictures are drawn, and what is measured of them."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from piti.config.section import Positive, ProgramRef, Section, WeightsRef

Sampler = Literal["ddpm", "ddim", "dpm++", "unipc"]

_RESPACING = re.compile(r"fast27|(?:ddim|logsnr)[0-9]{1,6}|[0-9]{1,6}(?:, ?[0-9]{1,6})*")

FigureKind = Literal[
    "fid", "kid", "clip_fid", "precision", "recall", "lpips", "lpips_vgg", "lpips_diversity", "psnr", "ssim",
    "miou", "miou_small", "miou_medium", "miou_large", "edge_f1", "depth_order_error", "normal_error",
]  # fmt: skip


class SamplingConfig(Section):
    """How pictures are drawn. `guidance_scale` is s = 1 + w of equation 7; 1 means no guidance.

    `base_respacing`/`upsampler_respacing`: a number of steps, a section list, `ddimN`, `fast27`, or `logsnrN`: N steps
    at even distances of log-SNR, the spacing for `dpm++` and the only one for `unipc`. A worker draws
    `pictures_per_part` pictures, `batch_size` at a time, and then stores them as one tar: a killed worker loses at most
    that many. The first `diversity_conditions` conditions get `diversity_samples` more pictures each; for the first
    `upsampled_conditions` the upsampler also draws one from the truth's own low-resolution picture.
    """

    base_sampler: Sampler = "ddpm"
    base_respacing: str = "250"
    guidance_scale: Annotated[float, Field(ge=0)] = 1.5
    normalized_guidance: bool = True
    upsampler_sampler: Sampler = "ddpm"
    upsampler_respacing: str = "fast27"
    upsampler_noise_scale: Annotated[float, Field(gt=0)] = 0.997
    num_samples: Positive | None = None
    pictures_per_part: Positive = 64
    batch_size: Positive = 16
    precision: Literal["fp32", "bf16"] = "bf16"
    diversity_conditions: Annotated[int, Field(ge=0)] = 0
    diversity_samples: Annotated[int, Field(ge=2)] = 4
    upsampled_conditions: Annotated[int, Field(ge=0)] = 0

    @field_validator("base_respacing", "upsampler_respacing")
    @classmethod
    def _respacing_is_one(cls, respacing: str) -> str:
        """Whether the schedule has so many steps is for preflight."""
        if not _RESPACING.fullmatch(respacing):
            raise ValueError(
                "cannot read the respacing: give a number of steps, a list like 10,10,3,2,2, ddimN, logsnrN or fast27"
            )
        return respacing

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
