"""What each stage begins with, sees and changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from piti.config import Config
from piti.data.resizing import base_pictures
from piti.errors import CheckpointError, ConfigError
from piti.models import build_model
from piti.models.checkpoints import load_model
from piti.training.loop import train
from piti.training.stages import TrainingStage, semantic_thumbnails
from piti.training.workers import Workers


def test_base_pictures_are_pillows_bicubic(uniform: Any) -> None:
    """The published loader resizes 8-bit pictures with Pillow's bicubic; ours agrees within one level."""
    pixels = ((uniform("photo", (3, 256, 256)) + 1) * 127.5).round().to(torch.uint8)
    images = pixels.float()[None] / 127.5 - 1
    ours = ((base_pictures(images, 64)[0] + 1) * 127.5).round()
    pillow = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((64, 64), Image.Resampling.BICUBIC)
    theirs = torch.from_numpy(np.asarray(pillow).astype(np.float32)).permute(2, 0, 1)
    assert (ours - theirs).abs().max() <= 1
    assert ((base_pictures(images, 64) + 1) * 127.5 - ours).abs().max() < 1e-3, "not at 8-bit levels"


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_thumbnails_keep_average_colours_and_no_detail(uniform: Any, channels: int) -> None:
    images = uniform("images", (2, 3, 64, 64)).float()
    thumbnails = semantic_thumbnails(images, 64, channels)
    assert thumbnails.shape == (2, channels, 64, 64)
    means = images.mean(dim=(2, 3))
    luminance = means @ torch.tensor([0.299, 0.587, 0.114])
    wanted = {1: luminance[:, None], 3: means, 6: means.repeat(1, 2)}[channels]
    assert torch.allclose(thumbnails.mean(dim=(2, 3)), wanted, atol=2e-2)
    neighbours = (thumbnails[..., 1:] - thumbnails[..., :-1]).abs().mean()
    assert neighbours < 0.1 * (images[..., 1:] - images[..., :-1]).abs().mean()


def test_thumbnails_of_other_channels_are_refused() -> None:
    with pytest.raises(ConfigError, match="4 channels"):
        semantic_thumbnails(torch.zeros(1, 3, 16, 16), 16, 4)


def test_only_pretraining_looks_at_the_picture(pipeline: Any, uniform: Any) -> None:
    """Stages 1 and 2 see the task's condition, pretraining a thumbnail; all see the picture at base size."""
    image = ((uniform("image", (2, 3, 32, 32)) + 1) * 127.5).round().to(torch.uint8)
    batch = {"image": image, "condition": torch.zeros((2, 1, 32, 32), dtype=torch.uint8)}
    config: Config = pipeline.config()
    for name in ("pretrain", "stage1", "stage2"):
        examples = TrainingStage(name, config).examples(batch, torch.device("cpu"))
        assert examples.pictures.shape == (2, 3, 16, 16)
        assert examples.condition.shape == (2, 1, 32, 32)
        assert torch.equal(examples.condition, torch.full((2, 1, 32, 32), -1.0)) == (name != "pretrain")


def test_stage_1_learns_the_encoder_and_nothing_else(pipeline: Any) -> None:
    """The decoder of every checkpoint is pretraining's averaged one, bit for bit; the encoder is new and moves."""
    pipeline.finish("stage1")
    model = pipeline.config().models.base
    pretrained = load_model(pipeline.finished["pretrain"]["checkpoint"], model, "ema")
    begun = TrainingStage("stage1", pipeline.config()).initial_model(pipeline.context("stage1").spec.inputs)[0]
    for weights in ("ema", "model"):
        ended = load_model(pipeline.finished["stage1"]["checkpoint"], model, weights)
        for key, value in pretrained.decoder.state_dict().items():
            assert torch.equal(ended.decoder.state_dict()[key], value), key
        moved = [
            key
            for key, value in begun.encoder.state_dict().items()
            if not torch.equal(ended.encoder.state_dict()[key], value)
        ]
        assert moved, "the encoder has not learned"
    fresh = begun.encoder.state_dict()
    old = pretrained.encoder.state_dict()
    assert any(not torch.equal(fresh[key], old[key]) for key in fresh), "stage 1 began with pretraining's encoder"


def test_stage_2_begins_where_stage_1_ended_and_changes_everything(pipeline: Any) -> None:
    """Same weights, same validation noise: the value is the same to the last bit. Then all weights move."""
    stage2 = pipeline.finish("stage2")
    assert stage2["initial_validation"] == pipeline.finished["stage1"]["final_validation"]
    model = pipeline.config().models.base
    before = load_model(pipeline.finished["stage1"]["checkpoint"], model, "ema").state_dict()
    after = load_model(stage2["checkpoint"], model, "model").state_dict()
    still = [key for key in before if torch.equal(before[key], after[key])]
    assert still == []
    assert stage2["num_learning_parameters"] == stage2["num_parameters"]


def test_training_lowers_the_validation_loss(pipeline: Any) -> None:
    """Ten steps on 12 pictures of 16x16 pixels: well below the untrained network's value, on the same noise."""
    steps = [{"steps": 10, "learning_rate": 3e-3, "condition_dropout": 0.2}]
    result = pipeline.finish("pretrain", training__pretrain__phases=steps, training__pretrain__validate_every_steps=10)
    assert result["initial_validation"]["mse"] == pytest.approx(1.0, abs=0.05)  # it predicts no noise at all
    assert result["final_validation"]["mse"] < 0.8 * result["initial_validation"]["mse"]


def test_a_pretrained_base_fills_the_decoder(pipeline: Any, tmp_path: Any) -> None:
    """With pretrained.base there is no pretraining, and stage 1 begins with that file's decoder."""
    base = build_model(pipeline.config().models.base, seed=5)
    torch.save(dict(base.decoder.state_dict()), tmp_path / "base.pt")
    config = pipeline.config(pretrained__base={"path": str(tmp_path / "base.pt")})
    model, origin = TrainingStage("stage1", config).initial_model({})
    assert origin["loaded"] == "decoder"
    assert all(torch.equal(value, model.decoder.state_dict()[key]) for key, value in base.decoder.state_dict().items())
    assert not torch.equal(model.encoder.cls_token, base.encoder.cls_token)


def test_a_stage_before_it_that_is_not_finished_is_said(pipeline: Any) -> None:
    with pytest.raises(CheckpointError, match="not finished"):
        train(pipeline.context("stage2"), Workers())


def test_perceptual_loss_without_weights_needs_permission(pipeline: Any) -> None:
    """Only a config that allows untrained feature networks may train the upsampler without VGG19's weights."""
    with pytest.raises(ConfigError, match=r"training\.upsampler\.vgg19"):
        train(pipeline.context("upsampler", allow_stand_in_networks=False), Workers())
