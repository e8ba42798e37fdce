"""The command line without servers: what each command prints, how it fails, and that `--help` is quick."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
import yaml

from piti.cli import doctor
from piti.config.presets import load_config
from piti.models import build_model
from piti.models.checkpoints import load_model
from tests.command_line import fails_in_one_line, piti

TINY = [
    "models.base.image_size=16", "models.base.model_channels=32", "models.base.channel_mult=[1, 2]",
    "models.base.attention_resolutions=[8]", "models.base.encoder_width=32", "models.base.encoder_layers=1",
    "models.base.encoder_heads=2",
]  # fmt: skip
TINY_OPTIONS = ["--config", "demo-sketch", *(part for setting in TINY for part in ("--set", setting))]


@pytest.fixture(autouse=True)
def no_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's stack is in sight, and no server answers."""
    monkeypatch.setenv("PITI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("PITI_RAY_JOBS_URL", "http://127.0.0.1:9")


def test_the_command_line_imports_nothing_heavy() -> None:
    heavy = "torch", "ray", "prefect", "cv2", "pyarrow", "scipy"
    code = f"import sys, piti.cli; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_wrong_usage_exits_with_2() -> None:
    assert piti("up", "--prefect-port", "many").exit_code == 2
    assert piti("up", "--prefect-port", "70000").exit_code == 2
    assert piti("nonsense").exit_code == 2


def test_config_show_prints_what_would_run() -> None:
    answer = piti("config", "show", "demo", "--set", "sampling.guidance_scale=2.5", "--set", "cluster.num_workers=1")
    assert answer.exit_code == 0
    tree = yaml.safe_load(answer.stdout)
    assert tree["sampling"]["guidance_scale"] == 2.5
    assert tree["cluster"]["num_workers"] == 1
    assert tree["diffusion"]["base"]["steps"] == 1000, "defaults are part of it"


def test_down_and_status_where_nothing_runs() -> None:
    down = piti("down")
    assert (down.exit_code, down.stdout.strip()) == (0, "nothing was running")
    status = piti("status")
    assert status.exit_code == 1
    assert "piti up" in status.stdout


def test_paths_are_printed_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Brackets are markup to the library that prints, and words between colons are pictures."""
    home = tmp_path / "[red] my [/] :smile: runs"
    home.mkdir(parents=True)
    monkeypatch.setenv("PITI_HOME", str(home))
    ports = {"prefect": 1, "ray_dashboard": 2, "ray": 3}
    record = {
        "id": "x",
        "home": str(home),
        "folder": "/",
        "ports": ports,
        "ray_folder": "/",
        "num_cpus": None,
        "processes": {},
    }
    (home / "stack.json").write_text(json.dumps(record))
    assert f"{home}/logs" in piti("status").stdout
    (home / "stack.json").write_text("{}")
    assert f"{home}/stack.json is damaged" in fails_in_one_line(piti("status"))


def test_exported_and_imported_weights_are_the_same_bit_for_bit(tmp_path: Path) -> None:
    sizes = load_config(
        "demo-sketch", {key: yaml.safe_load(value) for key, value in (item.split("=") for item in TINY)}
    ).models.base
    model = build_model(sizes, seed=3)
    published, ours, again = tmp_path / "published.pt", tmp_path / "step-00000000", tmp_path / "again.pt"
    torch.save(model.state_dict(), published)
    assert piti("checkpoints", "import", str(published), str(ours), *TINY_OPTIONS).exit_code == 0
    assert piti("checkpoints", "export", str(ours), str(again), *TINY_OPTIONS).exit_code == 0
    loaded = load_model(str(ours), sizes).state_dict()
    exported = torch.load(again, weights_only=True)
    assert list(exported) == list(model.state_dict())
    for key, value in model.state_dict().items():
        assert torch.equal(value, loaded[key]), key
        assert torch.equal(value, exported[key]), key
    about = yaml.safe_load(piti("checkpoints", "inspect", str(published)).stdout)
    assert about["path"] == str(published)
    assert len(about["sha256"]) == 64


def test_import_and_export_never_overwrite(tmp_path: Path) -> None:
    for arguments in (["import", "/nowhere/base.pt", str(tmp_path)], ["export", "/nowhere/step-1", str(tmp_path)]):
        assert "exists already" in fails_in_one_line(piti("checkpoints", *arguments, *TINY_OPTIONS))


def test_doctor_finds_this_machine_fit_and_says_what_is_not_running() -> None:
    answer = piti("doctor", "--config", "demo-sketch")
    assert answer.exit_code == 0, answer.stdout
    lines = {line.split()[1]: line for line in answer.stdout.splitlines()}
    assert lines["prefect"].startswith("note")
    assert "piti up" in lines["ray"]
    assert lines["python"].startswith("ok")
    assert lines["weights"].startswith("ok")


def test_doctor_refuses_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage(10**12, 10**12 - 10**9, 10**9))
    answer = piti("doctor")
    assert answer.exit_code == 1
    assert "0.9 GiB free" in answer.stdout
