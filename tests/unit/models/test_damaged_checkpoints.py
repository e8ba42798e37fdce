"""Whatever is damaged about a weights file, it ends as one line that names the file and the remedy, and loads nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from piti.checkpoints import verify_checkpoint
from piti.config import WeightsRef
from piti.errors import CheckpointError
from piti.models import ModelConfig, PITIModel, build_model
from piti.models.checkpoints import load_model, write_checkpoint
from piti.models.pretrained import inspect_checkpoint, load_pretrained
from piti.models.weight_files import read_weights

SMALL = ModelConfig(
    image_size=8, model_channels=32, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), num_head_channels=32,
    condition_channels=1, condition_size=16, encoder_width=16, encoder_layers=1, encoder_heads=1,
)  # fmt: skip
NUM_FLIPS = 300

Writer = Callable[[dict[str, Tensor], Path], None]
WRITERS: dict[str, Writer] = {
    "archive.pt": torch.save,
    "legacy.pt": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "plain.safetensors": safetensors.torch.save_file,
}


@pytest.fixture(scope="module")
def model() -> PITIModel:
    return build_model(SMALL, seed=0)


def few_numbers() -> dict[str, Tensor]:
    """An encoder's keys with hardly anything in them, so that a flip mostly hits what describes the tensors."""
    return {
        "cnn.conv1.weight": torch.rand(1, 1, 2, 2) + 1,
        "positional_embedding": torch.rand(1, 2, 2) + 1,
        "transformer.resblocks.0.ln_1.weight": torch.rand(3) + 1,
    }


def same(content: Any, state: dict[str, Tensor]) -> bool:
    return (
        isinstance(content, dict)
        and content.keys() == state.keys()
        and all(content[key].dtype == value.dtype and torch.equal(content[key], value) for key, value in state.items())
    )


def flipped(content: bytes, rng: random.Random) -> bytes:
    """Some bits of one byte turned over."""
    damaged = bytearray(content)
    damaged[rng.randrange(len(damaged))] ^= rng.randrange(1, 256)
    return bytes(damaged)


def names_file_and_remedy(error: CheckpointError, path: Path) -> bool:
    return str(path) in error.problem and bool(error.remedy) and "\n" not in str(error)


@pytest.mark.filterwarnings(
    "ignore::UserWarning"
)  # as a user runs it: a warning does not end what should have been refused
@pytest.mark.parametrize("name", WRITERS)
def test_a_flipped_byte_gives_no_traceback(name: str, tmp_path: Path) -> None:
    """Seeded flips all over a small file: refused in one line, or of no consequence.

    An archive of torch.save has checksums: it is never accepted with another content. The other two formats have none,
    so there a changed number cannot be told (that is what pinned hashes are for), but nothing else is raised.
    """
    state, path = few_numbers(), tmp_path / name
    WRITERS[name](state, path)
    content, rng = path.read_bytes(), random.Random(name)
    refused, poor = 0, list[str]()
    for _ in range(NUM_FLIPS):
        path.write_bytes(flipped(content, rng))
        try:
            found = read_weights(path, str(path))
            inspect_checkpoint(str(path))
        except CheckpointError as error:
            refused += 1
            poor += [] if names_file_and_remedy(error, path) else [str(error)]
            continue
        if name == "archive.pt":
            assert same(found, state), "another content was accepted"
    assert refused > NUM_FLIPS / 4
    assert poor == []


@pytest.mark.parametrize("name", WRITERS)
def test_a_damaged_file_never_fills_a_network_wrongly(name: str, model: PITIModel, tmp_path: Path) -> None:
    """Seeded flips in a whole network's file: refused with nothing loaded, or the network is the original.

    Where the format has no checksum, the file's hash is pinned.
    """
    state, path = model.state_dict(), tmp_path / name
    WRITERS[name](state, path)
    pin = None if name == "archive.pt" else inspect_checkpoint(str(path))["sha256"]
    content, rng = path.read_bytes(), random.Random(name)
    target = build_model(SMALL, seed=1)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    for _ in range(30):
        path.write_bytes(flipped(content, rng))
        try:
            load_pretrained(target, WeightsRef(path=str(path), sha256=pin))
        except CheckpointError:
            expected = before
        else:
            expected = state
        assert same(target.state_dict(), expected)
        target.load_state_dict(before)


def test_every_record_of_an_archive_is_checked(tmp_path: Path) -> None:
    """A changed number, the flag that lets torch read nothing into a tensor, a changed byte of the pickle."""
    path = tmp_path / "weights.pt"
    torch.save({"cnn.conv1.weight": torch.full((2, 2), 7.0)}, path)
    content = path.read_bytes()
    number = content.index(torch.full((2, 2), 7.0).numpy().tobytes())
    entry = content.rindex(b"weights/data/0") - 8  # the external attributes in the archive's directory
    for place, bits in ((number + 2, 0x01), (entry, 0x10), (content.index(b"cnn.conv1"), 0x01)):
        damaged = bytearray(content)
        damaged[place] ^= bits
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="cut short or damaged"):
            read_weights(path, str(path))


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("encoder", "cnn.conv1.weight"), ("encoder", "positional_embedding"), ("encoder", "cls_token"),
        ("encoder", "transformer.resblocks.0.ln_1.weight"), ("decoder", "input_blocks.0.0.weight"),
        ("decoder", "time_embed.0.weight"), ("decoder", "transformer_proj.weight"),
        ("decoder", "output_blocks.0.0.out_layers.3.weight"), ("model", "decoder.input_blocks.0.0.weight"),
        ("model", "decoder.output_blocks.0.0.out_layers.3.weight"),
    ],
)  # fmt: skip
def test_a_key_that_is_lacking_is_listed(part: str, key: str, model: PITIModel, tmp_path: Path) -> None:
    state = (model if part == "model" else model.get_submodule(part)).state_dict()
    del state[key]
    torch.save(state, tmp_path / "part.pt")
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(model, WeightsRef(path=str(tmp_path / "part.pt")))
    assert f"1 missing ({key})" in str(caught.value)
    if part == "encoder":
        assert "task encoder alone" in str(caught.value)
        assert inspect_checkpoint(str(tmp_path / "part.pt"))["kind"] == "piti_encoder"


def test_tensors_without_dimensions_are_listed(model: PITIModel, tmp_path: Path) -> None:
    """Whatever shapes a file has, its sizes are left out rather than stumbled over."""
    torch.save(dict.fromkeys(model.state_dict(), torch.tensor(1.0)), tmp_path / "flat.pt")
    with pytest.raises(CheckpointError, match="of the wrong shape"):
        load_pretrained(model, WeightsRef(path=str(tmp_path / "flat.pt")))
    assert "model_channels" not in inspect_checkpoint(str(tmp_path / "flat.pt"))


def test_whole_numbers_are_no_weights(model: PITIModel, tmp_path: Path) -> None:
    """One changed byte of a safetensors header turns F32 into I32: same shape, other numbers."""
    state = {**model.state_dict(), "encoder.cls_token": torch.ones(1, 1, 16, dtype=torch.int32)}
    safetensors.torch.save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(CheckpointError, match=r"1 not floating-point numbers \(encoder\.cls_token torch\.int32\)"):
        load_pretrained(model, WeightsRef(path=str(tmp_path / "odd.safetensors")))


def test_a_damaged_checkpoint_folder_is_no_pretrained_weights(model: PITIModel, tmp_path: Path) -> None:
    """Its weights are compared with the hashes that it carries, and its DONE.json may be anything."""
    folder = tmp_path / "step-00000001"
    write_checkpoint(folder, model=model.state_dict(), ema=model.state_dict(), trainer={}, about={})
    weights, marker = folder / "ema.safetensors", folder / "DONE.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="its sha256 differs"):
        load_pretrained(model, WeightsRef(path=str(folder)))
    weights.write_bytes(whole)
    for content in (b"\xff\xfe", b"{", b"[]", b"null", b'{"format": 1, "sha256": []}'):
        marker.write_bytes(content)
        for check in (verify_checkpoint, inspect_checkpoint, lambda uri: load_model(uri, SMALL)):
            with pytest.raises(CheckpointError, match=r"DONE\.json"):
                check(str(folder))
