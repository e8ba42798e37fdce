"""Missing and wrong weights are found before anything runs."""

from __future__ import annotations

from pathlib import Path

from piti import storage
from piti.presets import load_config
from piti.weights import weights_problems


def test_the_demo_needs_no_weights() -> None:
    assert weights_problems(load_config("demo")) == []


def test_without_permission_every_missing_network_is_named() -> None:
    problems = [
        str(problem) for problem in weights_problems(load_config("demo", {"allow_untrained_feature_networks": False}))
    ]
    assert len(problems) == 3
    for key in ("evaluation.inception", "evaluation.lpips_trunk", "training.upsampler.vgg19"):
        assert any(f"{key} is not set" in problem and f"set {key}.path" in problem for problem in problems)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    weights = tmp_path / "base.pt"
    weights.write_bytes(b"weights")
    right = {"pretrained.base.path": str(weights), "pretrained.base.sha256": storage.sha256_file(str(weights))}
    assert weights_problems(load_config("demo", right)) == []
    wrong = {**right, "pretrained.base.sha256": "0" * 64, "evaluation.inception.path": str(tmp_path / "nowhere.pth")}
    messages = "\n".join(str(problem) for problem in weights_problems(load_config("demo", wrong)))
    assert "expected 0000" in messages
    assert "there is no file" in messages
