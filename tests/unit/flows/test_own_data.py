"""README's way from the demo to one's own data: the presets that it says to copy, with the keys that it says to change."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from flows.cluster import Resources
from flows.preflight import config_problems, size_problems
from piti.config import ModelConfig, ModelsConfig
from piti.config.presets import PRESETS, load_config
from piti.plan import Plan
from piti.settings import PROJECT

NUM_PICTURES = 150
LAPTOP = Resources(cpus=2, gpus=0)
EIGHT_GPUS = Resources(cpus=64, gpus=8)
FILES = {
    "pretrained.base", "pretrained.upsampler", "evaluation.inception", "evaluation.lpips_trunk",
    "training.upsampler.vgg19",
}  # fmt: skip


def told() -> list[tuple[str, str]]:
    """Each preset that README says to copy, with the YAML that it shows for it."""
    section = (PROJECT / "README.md").read_text().split("## From the demo to your own data")[1].split("\n## ")[0]
    found = re.findall(r"After ((?:`cp [^`]*`(?: or )?)+).*?```yaml\n(.*?)```", section, re.DOTALL)
    return [
        (preset, keys)
        for commands, keys in found
        for preset in re.findall(r"`cp configs/([\w-]+)\.yaml mine\.yaml`", commands)
    ]


def edited(written: dict[str, Any], keys: dict[str, Any]) -> dict[str, Any]:
    """What a person's edit makes of a file: each key shown stands in place of what was written there."""
    merged = dict(written)
    for key, value in keys.items():
        goes_on = isinstance(value, dict) and "kind" not in value
        merged[key] = edited(written[key], value) if goes_on else value
    return merged


def photographs_with_labels(folder: Path) -> None:
    for place, mode in (("photos", "RGB"), ("labels", "L")):
        (folder / place).mkdir(parents=True)
        picture = Image.fromarray(np.zeros((20, 20, 3), np.uint8)).convert(mode)
        for number in range(NUM_PICTURES):
            picture.save(folder / place / f"{number}.png")


def test_readme_names_four_presets() -> None:
    assert [preset for preset, _ in told()] == ["demo", "ade20k-mask", "demo-sketch", "flickr-sketch"]


@pytest.mark.parametrize(("preset", "keys"), told(), ids=[preset for preset, _ in told()])
def test_preflight_takes_what_readme_shows(
    preset: str, keys: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that may be missing are the published files, which README names. GLIDE's fit networks of the published sizes
    (tests/unit/models/test_published_networks.py)."""
    photographs_with_labels(tmp_path / "data")
    monkeypatch.setenv("PITI_WEIGHTS", str(tmp_path / "data" / "weights"))
    mine = edited(yaml.safe_load((PRESETS / f"{preset}.yaml").read_text()), yaml.safe_load(keys))
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(mine).replace("/data/", f"{tmp_path}/data/"))
    config = load_config(str(file))
    is_small = preset.startswith("demo")
    problems = [*config_problems(config), *size_problems(config, LAPTOP if is_small else EIGHT_GPUS)]
    missing = {problem.problem.partition(":")[0] for problem in problems if " GB free" not in problem.problem}
    if is_small:
        assert missing == set()
        assert Plan(config).stage2.output.startswith(f"{tmp_path}/data/piti/mine/runs/")
    else:
        assert missing == FILES | ({"data.sketch.weights"} if config.data.modality == "sketch" else set())
        channels = config.models.base.condition_channels
        published = ModelsConfig(base=ModelConfig.base(channels), upsampler=ModelConfig.upsampler(channels))
        assert config.models == published
