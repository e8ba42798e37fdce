"""The wheel outside of any checkout: presets and assets are in it, state goes to the user's state folder."""

from __future__ import annotations

import os
import subprocess
import zipfile
from pathlib import Path

import pytest
import yaml

from piti.config.presets import PRESETS
from piti.settings import PROJECT
from piti.stack.services import DEPLOYMENTS
from tests.wheel import build_wheel, install_wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install_wheel(wheel, tmp_path_factory.mktemp("environment"))


def run(folder: Path, *command: str | Path) -> str:
    """What a command prints in an empty folder, for a user whose home folder is empty too."""
    (folder / "empty").mkdir(exist_ok=True)
    unset = ("PITI_", "PREFECT_", "RAY_", "XDG_", "PYTHON")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(unset)}
    done = subprocess.run(
        command, cwd=folder / "empty", env={**environment, "HOME": str(folder / "home")}, capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_everything_that_is_no_code_is_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"piti/configs/{path.name}" for path in PRESETS.glob("*.yaml")} <= names
    folders = [PROJECT / name for name in ("degradations", "eval", "flows", "piti")]
    files = {path.relative_to(PROJECT).as_posix() for folder in folders for path in folder.rglob("*") if path.is_file()}
    assert {name for name in files if "__pycache__" not in name} <= names


def test_presets_are_found_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    assert "demo" in run(tmp_path, installed / "piti", "config", "list").split()
    shown = yaml.safe_load(run(tmp_path, installed / "piti", "config", "show", "demo"))
    assert shown["root"] == str(tmp_path / "empty" / "data" / "demo"), "what is made lies where the command was run"


def test_state_lies_in_the_users_state_folder_and_deployments_are_found(installed: Path, tmp_path: Path) -> None:
    code = """
import piti.settings, flows.serve, prefect
print(piti.settings.__file__)
print(piti.settings.settings().home)
print(*sorted(f"{each.name}={each.entrypoint}" for each in flows.serve.deployments()))
"""
    file, home, deployments = run(tmp_path, installed / "python", "-c", code).splitlines()
    assert Path(file).is_relative_to(installed.parent), "not the checkout's"
    assert Path(home) == tmp_path / "home" / ".local" / "state" / "piti"
    found = dict(each.split("=") for each in deployments.split())
    assert set(found) == DEPLOYMENTS
    assert found["full-train"] == "flows.full_train.full_train", "found wherever it is installed"
    assert list((tmp_path / "empty").iterdir()) == []
