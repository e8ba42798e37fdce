"""Phases begin as the published runs do; stage 1 stores its frozen decoder once; checkpoints say what they hold."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from piti import storage
from piti.checkpoints import Checkpoint, checkpoint_uri, checkpoints_of, newest_whole_checkpoint
from piti.config import WeightsRef
from piti.config.presets import load_config
from piti.errors import CheckpointError
from piti.models import PITIModel, build_model
from piti.models.checkpoints import load_model, load_trainer_state, write_checkpoint
from piti.models.pretrained import inspect_checkpoint, load_pretrained
from piti.training.loop import train
from piti.training.stages import TrainingStage
from piti.training.state import TrainingState
from piti.training.workers import Workers

EVERY_STEP = {"checkpoint_every_steps": 1, "keep_checkpoints": 20}


def options(stage: str, phases: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {f"training__{stage}__{name}": value for name, value in {"phases": phases, **more}.items()}


def test_a_phase_begins_from_averaged_weights_with_a_fresh_optimizer_and_sampler(pipeline: Any) -> None:
    """Its learning rate is next to nothing here, so that what it begins from shows after its first step."""
    phases = [{"steps": 3, "learning_rate": 1e-2}, {"steps": 2, "learning_rate": 1e-12}]
    context = pipeline.context("pretrain", **options("pretrain", phases, **EVERY_STEP))
    train(context, Workers())
    config, run = context.config.models.base, context.spec.output
    learned, averaged = (load_model(checkpoint_uri(run, 3), config, weights) for weights in ("model", "ema"))
    begun = load_model(checkpoint_uri(run, 4), config, "model").state_dict()
    for key, value in averaged.state_dict().items():
        torch.testing.assert_close(begun[key], value, rtol=0, atol=1e-9)
    assert any((learned.state_dict()[key] - value).abs().max() > 1e-4 for key, value in begun.items())
    batch = context.config.training.pretrain.batch_size
    for step, steps_in_phase in ((3, 3), (4, 1), (5, 2)):
        trainer = load_trainer_state(checkpoint_uri(run, step))
        assert {float(entry["step"]) for entry in trainer["optimizer"]["state"].values()} == {steps_in_phase}
        assert int(trainer["timesteps"]["counts"].sum()) == steps_in_phase * batch
        assert trainer["progress"]["step"] == step


def test_the_average_warms_up_anew_in_each_phase(pipeline: Any) -> None:
    settings = pipeline.config(
        **options("pretrain", [{"steps": steps, "learning_rate": 1e-3} for steps in (3, 2, 4)])
    ).training.pretrain
    assert settings.phase_ends == (3, 5, 9)
    assert [settings.step_in_phase(step) for step in range(9)] == [0, 1, 2, 0, 1, 0, 1, 2, 3]
    assert [settings.phase_at(step).steps for step in range(9)] == [3, 3, 3, 2, 2, 4, 4, 4, 4]


def test_the_end_of_a_phase_is_validated_and_kept(pipeline: Any) -> None:
    """Neither interval falls on it, and newer checkpoints would push it out."""
    phases = [{"steps": steps, "learning_rate": 1e-3} for steps in (3, 4)]
    intervals = {"checkpoint_every_steps": 2, "validate_every_steps": 100, "keep_checkpoints": 1}
    context = pipeline.context("pretrain", **options("pretrain", phases, **intervals))
    train(context, Workers())
    assert [Checkpoint.at(uri).step for uri in checkpoints_of(context.spec.output)] == [3, 7]
    assert Checkpoint.at(checkpoint_uri(context.spec.output, 3)).about["validation_step"] == 3


def test_a_checkpoint_says_which_step_its_validation_is_of(pipeline: Any) -> None:
    context = pipeline.context(
        "pretrain", training__pretrain__keep_checkpoints=20
    )  # validated every 3, written every 2
    train(context, Workers())
    found = {Checkpoint.at(uri).step: Checkpoint.at(uri).about for uri in checkpoints_of(context.spec.output)}
    assert {step: about["validation_step"] for step, about in found.items()} == {2: 0, 4: 3, 6: 6}


@pytest.fixture
def stage1(pipeline: Any) -> Any:
    """A finished stage 1, of which tests may damage what they like."""
    done, context = pipeline.finish("stage1"), pipeline.context("stage1")
    shutil.copytree(done["checkpoint"].rpartition("/")[0], context.spec.output)
    return context


def test_stage_1_stores_the_decoder_once_for_the_run(stage1: Any) -> None:
    config, run = stage1.config.models.base, stage1.spec.output
    checkpoints = checkpoints_of(run)
    assert len(checkpoints) == 2
    (frozen,) = [name for name in storage.list_names(run) if name.startswith("frozen-")]
    learning = 4 * sum(p.numel() for p in PITIModel(config).encoder.parameters())
    for uri in checkpoints:
        for name in ("model.safetensors", "ema.safetensors"):
            assert os.path.getsize(f"{uri}/{name}") < 1.1 * learning + 10_000
        assert Checkpoint.at(uri).frozen == {"file": frozen, "sha256": storage.sha256_file(f"{run}/{frozen}")}
    whole = load_model(checkpoints[-1], config)
    other = build_model(config, seed=99)
    assert load_pretrained(other, WeightsRef(path=checkpoints[-1]))["loaded"] == "model"
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in other.state_dict().items())
    assert inspect_checkpoint(checkpoints[-1])["kind"] == "piti"


def test_a_damaged_frozen_decoder_is_refused(stage1: Any) -> None:
    run = stage1.spec.output
    uri = newest_whole_checkpoint(run)
    assert uri is not None
    path = Path(run) / Checkpoint.at(uri).frozen["file"]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"frozen-.*its sha256 differs"):
        load_model(uri, stage1.config.models.base)
    assert newest_whole_checkpoint(run) is None
    path.unlink()
    with pytest.raises(CheckpointError, match=r"frozen-.* is missing"):
        load_model(uri, stage1.config.models.base)


@pytest.mark.parametrize("is_missing", [False, True])
def test_a_resumed_run_stores_a_damaged_frozen_decoder_anew(stage1: Any, is_missing: bool) -> None:
    """It is what the stage began with: no checkpoint is lost with it."""
    run = stage1.spec.output
    before = newest_whole_checkpoint(run)
    assert before is not None
    path = Path(run) / Checkpoint.at(before).frozen["file"]
    content = path.read_bytes()
    path.unlink()
    if not is_missing:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    state = TrainingState.begin(TrainingStage("stage1", stage1.config), stage1.spec.inputs, Workers(), run)
    assert state.progress.step == Checkpoint.at(before).step
    assert path.read_bytes() == content
    assert newest_whole_checkpoint(run) == before


def test_a_checkpoint_of_stage_1_is_below_600_megabytes_at_published_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, averages and all that the trainer keeps after a step, counted without content."""
    for name in ("DATA", "WEIGHTS", "ROOT"):
        monkeypatch.setenv(f"PITI_{name}", str(tmp_path))
    stage = TrainingStage("stage1", load_config("coco-mask"))
    with torch.device("meta"):
        state = TrainingState(stage, PITIModel(stage.model_config), Workers(device=torch.device("meta")), {})
    for parameter in state.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.param_groups[0]["fused"] = False  # its kernels need content
    state.optimizer.step()
    snapshot = state.snapshot()
    learning = 4 * sum(parameter.numel() for parameter in state.parameters())
    assert 4 * learning < snapshot.num_bytes < 0.6e9, "weights, averages and two moments, and not much else"


def test_averages_share_the_frozen_decoder(pipeline: Any) -> None:
    pipeline.finish("pretrain")
    stage = TrainingStage("stage1", pipeline.config())
    state = TrainingState.fresh(stage, pipeline.context("stage1").spec.inputs, Workers())
    for average, parameter in zip(state.averaged().parameters(), state.model.parameters(), strict=True):
        assert (average.data_ptr() == parameter.data_ptr()) != parameter.requires_grad


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c", model={}, ema={}, trainer={}, about={"step": 3})
    marker = str(tmp_path / "c" / storage.MARKER)
    storage.write_json(marker, {**storage.read_json(marker), "format": 99})
    with pytest.raises(CheckpointError, match="not that of a checkpoint in format"):
        Checkpoint.at(str(tmp_path / "c"))
