"""Missing and wrong weights are found before anything runs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from piti import storage
from piti.config import WeightsRef
from piti.config.presets import load_config
from piti.errors import CheckpointError
from piti.models import build_model
from piti.models.pretrained import export_piti, pretrained_problems
from piti.weights import open_weights, unpinned_keys, weights_problems


def found(overrides: dict[str, Any]) -> list[str]:
    """All that preflight says of a config's weights."""
    config = load_config("demo-sketch", overrides)
    return [str(problem) for problem in (*weights_problems(config), *pretrained_problems(config))]


def test_the_demo_needs_no_weights() -> None:
    assert found({}) == []


def test_files_that_steps_know_by_path_alone_are_told() -> None:
    refs = {"pretrained.base": {"path": "base.pt"}, "training.upsampler.vgg19": {"path": "vgg.pth", "sha256": "0" * 64}}
    assert unpinned_keys(load_config("demo-sketch", refs)) == ["pretrained.base.sha256"]
    assert unpinned_keys(load_config("demo")) == []


def test_the_demos_prior_is_shipped_pinned_and_fits() -> None:
    config = load_config("demo")
    assert config.pretrained.base is not None
    assert config.pretrained.base.path.startswith("piti://"), "independent of where the package lies"
    assert [str(problem) for problem in (*weights_problems(config), *pretrained_problems(config))] == []
    altered = load_config("demo", {"pretrained.base.sha256": "0" * 64})
    assert [str(problem) for problem in pretrained_problems(altered)] != []
    shipped = sum(path.stat().st_size for path in storage.ASSETS.glob("*.safetensors"))
    assert 0 < shipped < 25_000_000


def test_without_permission_every_missing_network_is_named() -> None:
    problems = [
        str(problem) for problem in weights_problems(load_config("demo-sketch", {"allow_stand_in_networks": False}))
    ]
    assert len(problems) == 3
    for key in ("evaluation.inception", "evaluation.lpips_trunk", "training.upsampler.vgg19"):
        assert any(f"{key} is not set" in problem and f"set {key}.path" in problem for problem in problems)


def test_an_evaluation_asks_for_the_sketches_detector_and_every_optional_network() -> None:
    nowhere = {"path": "/nowhere/file.pt", "sha256": "0" * 64}
    overrides = {
        "data.sketch": {"detector": "hed", "weights": nowhere},
        "evaluation.clip": nowhere,
        "evaluation.vgg16": nowhere,
    }
    problems = [str(problem) for problem in weights_problems(load_config("demo-sketch", overrides), training=False)]
    problems += [
        str(problem) for problem in weights_problems(load_config("demo", {"evaluation.alignment.network": nowhere}))
    ]
    keys = ("data.sketch.weights", "evaluation.clip", "evaluation.vgg16", "evaluation.alignment.network")
    assert [problem.partition(":")[0] for problem in problems] == list(keys)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    weights = tmp_path / "base.pt"
    export_piti(build_model(load_config("demo-sketch").models.base, seed=0), str(weights))
    right = {"pretrained.base.path": str(weights), "pretrained.base.sha256": storage.sha256_file(str(weights))}
    assert found(right) == []
    wrong = {**right, "pretrained.base.sha256": "0" * 64, "evaluation.inception.path": str(tmp_path / "nowhere.pth")}
    messages = "\n".join(found(wrong))
    assert "pretrained.base:" in messages
    assert "the config pins 0000" in messages
    assert "there is no file" in messages


def test_weights_of_another_width_and_other_files_are_found_before_training(tmp_path: Path) -> None:
    base = load_config("demo-sketch").models.base
    wide, nonsense = tmp_path / "wide.pt", tmp_path / "nonsense.pt"
    export_piti(build_model(base.model_copy(update={"model_channels": 64}), seed=0), str(wide))
    nonsense.write_bytes(b"weights")
    for path, words in ((wide, "of the wrong shape"), (nonsense, "nonsense.pt")):
        (problem,) = found({"pretrained.base.path": str(path)})
        assert problem.startswith("pretrained.base:")
        assert words in problem


@pytest.mark.parametrize("root", ["memory://weights-test", None])
def test_a_pinned_file_is_found_hashed_and_opened_wherever_it_lies(root: str | None, tmp_path: Path) -> None:
    uri = storage.join(root or str(tmp_path), "network.pth")
    storage.write_bytes(uri, b"weights")
    pin = hashlib.sha256(b"weights").hexdigest()
    with open_weights(WeightsRef(path=uri, sha256=pin), "some.key") as file:
        assert file.path.read_bytes() == b"weights"
        assert (file.uri, file.sha256) == (uri, pin)
    assert file.path.exists() == (root is None), "a copy is left behind, or the file itself is gone"
    with (
        pytest.raises(CheckpointError, match=r"^some\.key: .* the config pins 0000.* - download hed again"),
        open_weights(WeightsRef(path=uri, sha256="0" * 64), "some.key", "hed"),
    ):
        pytest.fail("it was opened")
    with (
        pytest.raises(CheckpointError, match=r"^some\.key: there is no file .*nothing\.pth - download hed there"),
        open_weights(WeightsRef(path=uri.replace("network", "nothing")), "some.key", "hed"),
    ):
        pytest.fail("it was opened")
