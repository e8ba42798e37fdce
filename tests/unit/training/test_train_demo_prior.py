"""scripts/train_demo_prior.py: it trains, stops, goes on where it was, checks and exports what `piti://` files are."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import pytest
import safetensors.torch
import torch
from skimage import data

from piti import storage
from piti.config import Config
from piti.config.presets import load_config
from piti.models.checkpoints import load_model, load_trainer_state

PROJECT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_demo_prior", PROJECT / "scripts" / "train_demo_prior.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config_of(root: Path, steps: int) -> Config:
    """The prior's config, `steps` long, a checkpoint at each step."""
    short: dict[str, Any] = {"phases": [{"steps": steps, "learning_rate": 1.0e-3}], "batch_size": 2}
    overrides = {
        f"training.{stage}.{name}": value
        for stage in ("pretrain", "upsampler")
        for name, value in {**short, "checkpoint_every_steps": 1}.items()
    }
    return load_config("demo-prior", {"root": str(root), **overrides})


def test_it_trains_resumes_checks_and_exports(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    cv2.imwrite(str(photographs / "cat.png"), data.chelsea())
    once, twice = config_of(tmp_path / "prior", steps=1), config_of(tmp_path / "prior", steps=2)
    for network in ("base", "upsampler"):
        first = script.train(once, network, photographs, 4, "cpu")
        second = script.train(twice, network, photographs, 4, "cpu")
        done = storage.read_json(storage.join(second, storage.MARKER))
        assert (storage.name(first), storage.name(second)) == ("step-00000001", "step-00000002")
        assert done["samples"] == 4  # two steps of two, the first of them not done again
        before, after = (
            load_model(uri, getattr(twice.models, network), "model").state_dict() for uri in (first, second)
        )
        assert any(not torch.equal(value, after[key]) for key, value in before.items())

    phases = [{"steps": 1, "learning_rate": 1e-3}] * 2
    phased = load_config("demo-prior", {"root": str(tmp_path / "phased"), "training.pretrain.phases": phases,
                                        "training.pretrain.batch_size": 2})  # fmt: skip
    moments = load_trainer_state(script.train(phased, "base", photographs, 2, "cpu"))["optimizer"]["state"][0]
    assert moments["step"] == 1, "the second phase began with the optimizer of the first"

    figures = script.check(twice, photographs, 2)
    assert figures["losses"][900]["right"] > 0
    assert figures["psnr_db"]["bicubic"] > 15  # a 64-pixel crop of a photograph, a quarter the size and back

    monkeypatch.setattr(storage, "ASSETS", tmp_path / "assets")
    path, sha256 = script.export(twice, "base").split()
    assert storage.sha256_file(path) == sha256
    exported = safetensors.torch.load_file(path)
    trained = load_model(script.newest(twice, "base"), twice.models.base).state_dict()
    assert exported.keys() == trained.keys()
    for key, value in trained.items():
        torch.testing.assert_close(exported[key].float(), value, rtol=1e-3, atol=1e-6)  # half precision
