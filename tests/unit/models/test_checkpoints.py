"""Weights go into files and come back bit for bit; a file that does not fit is refused, whole, saying why."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from piti import storage
from piti.checkpoints import verify_checkpoint
from piti.config import WeightsRef
from piti.errors import CheckpointError
from piti.models import ModelConfig, PITIModel, build_model
from piti.models.checkpoints import load_model, load_trainer_state, write_checkpoint
from piti.models.pretrained import export_piti, identify, inspect_checkpoint, load_pretrained

SMALL = ModelConfig(
    image_size=16,
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(8,),
    num_head_channels=32,
    condition_channels=1,
    condition_size=32,
    encoder_width=32,
    encoder_layers=2,
    encoder_heads=2,
)
SMALL_UPSAMPLER = SMALL.model_copy(
    update={"image_size": 32, "super_resolution": True, "channel_mult": (1, 1, 2), "attention_resolutions": (32, 8)}
)
TRAINER = {
    "step": 7,
    "optimizer": {"state": {0: {"exp_avg": torch.ones(3), "step": torch.tensor(7.0)}}, "param_groups": [{"lr": 1e-4}]},
    "discriminator": {"model.0.weight": torch.zeros(2)},
    "note": None,
}


@pytest.fixture(scope="module")
def model(filled: Callable[[nn.Module], nn.Module]) -> PITIModel:
    """Weights as odd as trained ones: nothing zero, nothing of another network's seed."""
    built = build_model(SMALL, seed=0)
    filled(built)
    return built


@pytest.fixture
def fresh() -> PITIModel:
    return build_model(SMALL, seed=1)


@pytest.fixture
def checkpoint(model: PITIModel, tmp_path: Path) -> str:
    folder = tmp_path / "step-00000007"
    averaged = {key: value + 1 for key, value in model.state_dict().items()}
    write_checkpoint(folder, model=model.state_dict(), ema=averaged, trainer=TRAINER, about={"step": 7})
    return str(folder)


def glide_state(model: PITIModel) -> dict[str, Tensor]:
    """GLIDE's layout: the decoder's keys without a prefix, and a text tower beside them."""
    return {
        **model.decoder.state_dict(),
        "transformer.resblocks.0.attn.c_qkv.weight": torch.ones(3, 3),
        "token_embedding.weight": torch.ones(5, 3),
        "positional_embedding": torch.ones(4, 3),
        "padding_embedding": torch.ones(4, 3),
        "final_ln.weight": torch.ones(3),
        "final_ln.bias": torch.ones(3),
    }


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def clone(model: PITIModel) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def test_our_checkpoint_comes_back_bit_for_bit(model: PITIModel, checkpoint: str) -> None:
    assert sorted(os.listdir(checkpoint)) == ["DONE.json", "ema.safetensors", "model.safetensors", "trainer.pt"]
    assert same(load_model(checkpoint, SMALL, "model").state_dict(), model.state_dict())
    averaged = load_model(checkpoint, SMALL)
    assert torch.equal(averaged.encoder.cls_token, model.encoder.cls_token + 1)
    assert averaged.training
    assert all(parameter.requires_grad for parameter in averaged.parameters())
    trainer = load_trainer_state(checkpoint)
    assert trainer["step"] == 7
    assert trainer["note"] is None
    assert torch.equal(trainer["optimizer"]["state"][0]["exp_avg"], torch.ones(3))
    about = verify_checkpoint(checkpoint).about
    assert about["step"] == 7
    assert set(about["sha256"]) == {"model.safetensors", "ema.safetensors", "trainer.pt"}


def test_memory_format_is_no_part_of_a_checkpoint(model: PITIModel, tmp_path: Path) -> None:
    """Written from channels_last weights: the same numbers come back."""
    last = build_model(SMALL, seed=0).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    last.load_state_dict(model.state_dict())
    state = last.state_dict()
    assert not state["decoder.input_blocks.1.0.in_layers.2.weight"].is_contiguous()
    write_checkpoint(tmp_path / "c", model=state, ema=state, trainer={}, about={})
    assert same(load_model(str(tmp_path / "c"), SMALL).state_dict(), model.state_dict())


def test_a_trainer_state_that_could_not_be_loaded_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"trainer\['path'\] is a PosixPath"):
        write_checkpoint(tmp_path / "c", model={}, ema={}, trainer={"path": tmp_path}, about={})
    assert not (tmp_path / "c").exists()


def test_pitis_layout_round_trips_bit_for_bit(model: PITIModel, fresh: PITIModel, tmp_path: Path) -> None:
    path = str(tmp_path / "exported" / "piti.pt")
    export_piti(model, path)
    assert same(torch.load(path, weights_only=True), model.state_dict())
    loaded = load_pretrained(fresh, WeightsRef(path=path))
    assert (loaded["kind"], loaded["loaded"]) == ("piti", "model")
    assert loaded["sha256"] == storage.sha256_file(path)
    assert same(fresh.state_dict(), model.state_dict())


def test_pitis_encoder_alone_fills_the_encoder(model: PITIModel, fresh: PITIModel, tmp_path: Path) -> None:
    """The file of its stage 1, averaged or not: keys without a prefix."""
    torch.save(model.encoder.state_dict(), tmp_path / "ema_0.9999_200000.pt")
    before = clone(fresh)
    loaded = load_pretrained(fresh, WeightsRef(path=str(tmp_path / "ema_0.9999_200000.pt")))
    assert (loaded["kind"], loaded["loaded"]) == ("piti_encoder", "encoder")
    assert same(fresh.encoder.state_dict(), model.encoder.state_dict())
    assert all(torch.equal(value, before[f"decoder.{key}"]) for key, value in fresh.decoder.state_dict().items())


@pytest.mark.parametrize("text_tower", [True, False])
def test_glides_layout_fills_the_decoder_bit_for_bit(
    text_tower: bool, model: PITIModel, fresh: PITIModel, tmp_path: Path
) -> None:
    state = glide_state(model) if text_tower else model.decoder.state_dict()
    torch.save(state, tmp_path / "base.pt")
    before = clone(fresh)
    loaded = load_pretrained(fresh, WeightsRef(path=str(tmp_path / "base.pt")))
    assert (loaded["kind"], loaded["loaded"]) == ("glide" if text_tower else "decoder", "decoder")
    assert same(fresh.decoder.state_dict(), model.decoder.state_dict())
    assert all(torch.equal(value, before[f"encoder.{key}"]) for key, value in fresh.encoder.state_dict().items())


def test_glides_upsampler_fills_the_decoder_bit_for_bit(
    filled: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    """upsample.pt: a text tower too, six input channels, the same keys otherwise. base.pt does not pass for it."""
    model, fresh = build_model(SMALL_UPSAMPLER, seed=0), build_model(SMALL_UPSAMPLER, seed=1)
    filled(model)
    torch.save(glide_state(model), tmp_path / "upsample.pt")
    before = clone(fresh)
    loaded = load_pretrained(fresh, WeightsRef(path=str(tmp_path / "upsample.pt")))
    assert (loaded["kind"], loaded["loaded"]) == ("glide", "decoder")
    assert same(fresh.decoder.state_dict(), model.decoder.state_dict())
    assert all(torch.equal(value, before[f"encoder.{key}"]) for key, value in fresh.encoder.state_dict().items())
    base = build_model(SMALL_UPSAMPLER.model_copy(update={"super_resolution": False}), seed=0)
    torch.save(glide_state(base), tmp_path / "base.pt")
    message = refusal(fresh, tmp_path / "base.pt")
    assert "1 of the wrong shape (input_blocks.0.0.weight (32, 3, 3, 3) instead of (32, 6, 3, 3))" in message
    assert "super_resolution False" in message


@pytest.mark.parametrize(("config", "legacy"), [(SMALL, True), (SMALL_UPSAMPLER, False)], ids=["base", "upsampler"])
def test_pitis_averaged_files_of_whole_networks_load_bit_for_bit(
    config: ModelConfig, legacy: bool, filled: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    """As its train_util.save writes ema_RATE_STEP.pt in stage 2 and for the upsampler: a state_dict of Parameters."""
    model, fresh = build_model(config, seed=0), build_model(config, seed=1)
    filled(model)
    path = tmp_path / "ema_0.9999_060000.pt"
    averaged = {key: nn.Parameter(value) for key, value in model.state_dict().items()}
    torch.save(averaged, path, _use_new_zipfile_serialization=not legacy)
    loaded = load_pretrained(fresh, WeightsRef(path=str(path)))
    assert (loaded["kind"], loaded["loaded"]) == ("piti", "model")
    assert same(fresh.state_dict(), model.state_dict())


def test_half_precision_files_become_float32(model: PITIModel, fresh: PITIModel, tmp_path: Path) -> None:
    torch.save({key: value.half() for key, value in glide_state(model).items()}, tmp_path / "base.pt")
    load_pretrained(fresh, WeightsRef(path=str(tmp_path / "base.pt")))
    assert {parameter.dtype for parameter in fresh.parameters()} == {torch.float32}
    assert torch.equal(fresh.decoder.transformer_proj.weight, model.decoder.transformer_proj.weight.half().float())


def test_our_checkpoint_as_pretrained_gives_its_averaged_weights(
    model: PITIModel, fresh: PITIModel, checkpoint: str
) -> None:
    pin = storage.sha256_file(f"{checkpoint}/ema.safetensors")
    loaded = load_pretrained(fresh, WeightsRef(path=checkpoint, sha256=pin))
    assert loaded["loaded"] == "model"
    assert torch.equal(fresh.encoder.cls_token, model.encoder.cls_token + 1)


def refusal(model: PITIModel, path: Path, **pins: Any) -> str:
    """What a refused file's error says; and nothing of it has been loaded."""
    before = clone(model)
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(model, WeightsRef(path=str(path), **pins))
    assert same(clone(model), before)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors", "legacy.pt"])
def test_a_truncated_file_is_called_so(
    name: str, model: PITIModel, fresh: PITIModel, checkpoint: str, tmp_path: Path
) -> None:
    whole = tmp_path / name
    if name.endswith(".safetensors"):
        shutil.copyfile(f"{checkpoint}/model.safetensors", whole)
    else:
        torch.save(model.state_dict(), whole, _use_new_zipfile_serialization=name != "legacy.pt")
    load_pretrained(build_model(SMALL, seed=2), WeightsRef(path=str(whole)))  # it is sound before
    for keep in (0.99, 0.5, 0.001, 0.0):
        os.truncate(whole, int(keep * whole.stat().st_size))
        assert "cut short or damaged" in refusal(fresh, whole)


class Sneaky:
    """What a malicious checkpoint holds: an object whose loading runs a command."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


def test_a_pickle_with_code_is_refused_and_not_run(model: PITIModel, fresh: PITIModel, tmp_path: Path) -> None:
    torch.save({**model.state_dict(), "extra": Sneaky(tmp_path / "owned")}, tmp_path / "sneaky.pt")
    message = refusal(fresh, tmp_path / "sneaky.pt")
    assert "can run code: refused" in message
    assert not (tmp_path / "owned").exists()
    torch.save(model, tmp_path / "whole-module.pt")
    assert "state_dict" in refusal(fresh, tmp_path / "whole-module.pt")


def test_a_file_that_is_no_checkpoint_at_all(fresh: PITIModel, tmp_path: Path) -> None:
    (tmp_path / "page.pt").write_text("<html>404 not found</html>")
    assert "is not a file of weights" in refusal(fresh, tmp_path / "page.pt")
    assert "there is no file" in refusal(fresh, tmp_path / "nothing.pt")


@pytest.mark.parametrize("layout", ["piti", "glide", "encoder"])
def test_another_width_is_listed(layout: str, fresh: PITIModel, tmp_path: Path) -> None:
    wide = build_model(SMALL.model_copy(update={"model_channels": 64, "encoder_width": 64}), seed=0)
    state = {"piti": wide.state_dict(), "glide": glide_state(wide), "encoder": wide.encoder.state_dict()}[layout]
    torch.save(state, tmp_path / "wide.pt")
    message = refusal(fresh, tmp_path / "wide.pt")
    assert "of the wrong shape" in message
    assert f"{'encoder_width' if layout == 'encoder' else 'model_channels'} 64" in message
    assert "piti checkpoints inspect" in message
    assert {"piti": "a whole PITI network", "glide": "GLIDE's text-to-image", "encoder": "task encoder alone"}[
        layout
    ] in message


def test_many_offending_keys_are_cut_at_twenty(model: PITIModel, fresh: PITIModel, tmp_path: Path) -> None:
    """Of each sort the first twenty, and how many more there are."""
    keys = list(model.state_dict())
    state = {**dict(list(model.state_dict().items())[25:]), **{f"decoder.extra.{i}": torch.ones(1) for i in range(20)}}
    torch.save(state, tmp_path / "odd.pt")
    message = refusal(fresh, tmp_path / "odd.pt")
    assert f"25 missing ({', '.join(keys[:20])} and 5 more)" in message
    assert f"20 unexpected ({', '.join(f'decoder.extra.{i}' for i in range(20))})" in message
    assert "it looks like a whole PITI network" in message


def test_other_kinds_are_called_by_their_name(model: PITIModel, fresh: PITIModel, tmp_path: Path) -> None:
    inpainting = glide_state(model)
    inpainting["input_blocks.0.0.weight"] = torch.zeros(32, 7, 3, 3)
    optimizer = torch.optim.AdamW(model.parameters()).state_dict()
    for content, name in (
        (inpainting, "GLIDE's inpainting network"),
        (optimizer, "an optimizer's or trainer's state"),
        ({"something": torch.ones(1)}, "none of the known kinds"),
        ([1, 2], "none of the known kinds"),
    ):
        torch.save(content, tmp_path / "other.pt")
        assert name in refusal(fresh, tmp_path / "other.pt")


@pytest.mark.parametrize("layout", ["piti", "glide", "encoder"])
def test_wrapped_and_prefixed_weights_are_named(
    layout: str, model: PITIModel, fresh: PITIModel, tmp_path: Path
) -> None:
    """As trainers save them: in a larger mapping, or from within DataParallel or torch.compile."""
    states = {"piti": model.state_dict(), "glide": glide_state(model), "encoder": model.encoder.state_dict()}
    state = dict(states[layout])
    for content, words in (
        ({"state_dict": state, "epoch": 3, "optimizer": {"state": {}, "param_groups": []}}, "key state_dict"),
        ({"ema": state, "args": None}, "key ema"),
        ({f"module.{key}": value for key, value in state.items()}, "prefix module."),
        ({f"_orig_mod.{key}": value for key, value in state.items()}, "prefix _orig_mod."),
    ):
        torch.save(content, tmp_path / "wrapped.pt")
        message = refusal(fresh, tmp_path / "wrapped.pt")
        assert words in message
        assert "save the" in message


def test_weights_that_are_not_finite_are_refused(model: PITIModel, fresh: PITIModel, tmp_path: Path) -> None:
    state = clone(model)
    for value in (float("inf"), float("nan")):
        state["decoder.out.2.bias"][3] = value
        torch.save(state, tmp_path / "diverged.pt")
        assert "not finite: 1 tensors (decoder.out.2.bias)" in refusal(fresh, tmp_path / "diverged.pt")
    write_checkpoint(tmp_path / "c", model=state, ema=state, trainer={}, about={})
    with pytest.raises(CheckpointError, match="not finite"):
        load_model(str(tmp_path / "c"), SMALL)


def test_a_pinned_hash_is_checked(model: PITIModel, fresh: PITIModel, tmp_path: Path) -> None:
    export_piti(model, str(tmp_path / "piti.pt"))
    assert "the config pins 00" in refusal(fresh, tmp_path / "piti.pt", sha256="0" * 64)


def test_a_damaged_or_unfinished_checkpoint_of_ours_is_refused(checkpoint: str) -> None:
    weights = Path(checkpoint) / "ema.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    for check in (lambda: verify_checkpoint(checkpoint), lambda: load_model(checkpoint, SMALL)):
        with pytest.raises(CheckpointError, match="its sha256 differs"):
            check()
    load_model(checkpoint, SMALL, "model")  # the other file is sound
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"ema\.safetensors is missing"):
        verify_checkpoint(checkpoint)
    (Path(checkpoint) / "DONE.json").unlink()
    for check in (lambda: verify_checkpoint(checkpoint), lambda: load_trainer_state(checkpoint)):
        with pytest.raises(CheckpointError, match="not a finished checkpoint"):
            check()


def test_a_checkpoint_of_another_size_is_refused(checkpoint: str) -> None:
    with pytest.raises(CheckpointError, match=r"looks like a whole PITI network .* with .* 1 of the wrong shape"):
        load_model(checkpoint, SMALL.model_copy(update={"condition_size": 48}))
    with pytest.raises(CheckpointError, match="missing"):
        load_model(checkpoint, SMALL.model_copy(update={"encoder_layers": 3}))


def test_inspection_says_what_a_file_is(model: PITIModel, checkpoint: str, tmp_path: Path) -> None:
    export_piti(model, str(tmp_path / "piti.pt"))
    found = inspect_checkpoint(str(tmp_path / "piti.pt"))
    assert found["kind"] == "piti"
    assert {key: found[key] for key in ("model_channels", "encoder_width", "encoder_layers")} == {
        "model_channels": 32,
        "encoder_width": 32,
        "encoder_layers": 2,
    }
    assert found["channel_mult"] == [1, 2]
    assert found["num_res_blocks"] == 1
    assert found["attention_resolutions"] == ["image_size / 2"]
    assert found["condition_channels"] == 1
    assert found["condition_size"] == 32
    assert found["super_resolution"] is False
    assert found["num_parameters"] == sum(parameter.numel() for parameter in model.parameters())
    torch.save(glide_state(model), tmp_path / "base.pt")
    assert inspect_checkpoint(str(tmp_path / "base.pt"))["kind"] == "glide"
    assert inspect_checkpoint(checkpoint)["path"].endswith("ema.safetensors")
    with pytest.raises(CheckpointError, match="there is no file"):
        inspect_checkpoint(str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig.base(),
        ModelConfig.upsampler(condition_channels=1),
        SMALL,
        SMALL_UPSAMPLER,
        SMALL.model_copy(update={"channel_mult": (1,), "attention_resolutions": ()}),
        SMALL.model_copy(update={"channel_mult": (2, 2), "num_res_blocks": 2, "attention_resolutions": (16, 8)}),
    ],
)
@pytest.mark.parametrize("part", ["model", "decoder"])
def test_every_size_that_shapes_tell_is_read_off(config: ModelConfig, part: str) -> None:
    """Published and other sizes, whole or as GLIDE's layout: all that a config must say but heads and image_size."""
    with torch.device("meta"):
        model = PITIModel(config)
    sizes = identify(dict(model.state_dict()) if part == "model" else glide_state(model)).sizes
    names = ["super_resolution", "model_channels", "num_res_blocks", "encoder_width"]
    if part == "model":
        names += ["condition_channels", "condition_size", "encoder_layers"]
    assert {name: sizes.get(name) for name in names} == {name: getattr(config, name) for name in names}
    assert sizes["channel_mult"] == list(config.channel_mult)
    sides = [config.image_size // int(entry.partition(" / ")[2] or 1) for entry in sizes["attention_resolutions"]]
    assert sorted(sides) == sorted(config.attention_resolutions)


def test_checkpoints_in_an_object_store(model: PITIModel, fresh: PITIModel, tmp_path: Path) -> None:
    """Exported to and imported from an fsspec URI; published folders likewise."""
    uri = f"memory://{tmp_path.name}"
    export_piti(model, f"{uri}/piti.pt")
    load_pretrained(fresh, WeightsRef(path=f"{uri}/piti.pt"))
    assert same(fresh.state_dict(), model.state_dict())
    write_checkpoint(tmp_path / "c", model=model.state_dict(), ema=model.state_dict(), trainer=TRAINER, about={})
    storage.publish_folder(tmp_path / "c", f"{uri}/step-00000007")
    assert same(load_model(f"{uri}/step-00000007", SMALL).state_dict(), model.state_dict())
    assert load_trainer_state(f"{uri}/step-00000007")["step"] == 7
