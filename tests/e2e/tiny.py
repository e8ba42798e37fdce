"""The demo's config made tiny: every part runs for real, nothing has time to learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def tiny_overrides(root: Path, **more: Any) -> dict[str, Any]:
    """Overrides of configs/demo-sketch.yaml for seconds instead of minutes; `more` has dots written as two underscores."""
    overrides: dict[str, Any] = {
        "root": str(root),
        "data.source.train_crops": 48,
        "data.source.validation_crops": 8,
        "data.samples_per_shard": 16,
        "data.image_size": 64,
        "degradation.variants": 1,
        "models.base.image_size": 16,
        "models.base.model_channels": 32,
        "models.base.channel_mult": [1, 2],
        "models.base.attention_resolutions": [8],
        "models.base.condition_size": 64,
        "models.base.encoder_width": 64,
        "models.base.encoder_layers": 1,
        "models.upsampler.image_size": 64,
        "models.upsampler.channel_mult": [1, 1, 2],
        "models.upsampler.condition_size": 64,
        "models.upsampler.encoder_width": 64,
        "models.upsampler.encoder_layers": 1,
        "training.upsampler.picture_losses_from_step": 2,
        "training.stage2.sample_every_steps": 2,
        "sampling.num_samples": 8,
        "sampling.base_respacing": "4",
        "sampling.upsampler_respacing": "3",
        "sampling.diversity_conditions": 2,
        "evaluation.grid_samples": 4,
        "cluster.num_workers": 1,
    }
    for stage, steps in {"pretrain": 6, "stage1": 4, "stage2": 4, "upsampler": 4}.items():
        overrides |= {
            f"training.{stage}.phases": [{"steps": steps, "learning_rate": 1e-3, "condition_dropout": 0.2}],
            f"training.{stage}.batch_size": 4,
            f"training.{stage}.validation_samples": 4,
            f"training.{stage}.validate_every_steps": 100,
            f"training.{stage}.checkpoint_every_steps": 4,
            f"training.{stage}.log_every_steps": 1,
        }
    return overrides | {key.replace("__", "."): value for key, value in more.items()}
