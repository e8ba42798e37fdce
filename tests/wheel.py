"""The wheel as a user installs it: built from a copy of the sources, in an environment that knows nothing of the checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from piti.settings import PROJECT

SOURCES = ("configs", "studies", "degradations", "eval", "flows", "piti", "pyproject.toml", "README.md", "LICENSE")


def build_wheel(folder: Path) -> Path:
    """The project's wheel, built in `folder` without any download."""
    source = folder / "source"
    source.mkdir(parents=True)
    for name in SOURCES:
        path = PROJECT / name
        if path.is_dir():
            shutil.copytree(path, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(source)], check=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    return wheel


def install_wheel(wheel: Path, folder: Path) -> Path:
    """The `bin` of a new virtual environment that holds the wheel, and borrows its dependencies from this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    (packages,) = folder.glob("lib/python*/site-packages")
    # Python reads no .pth files in a folder that a .pth file names: the editable install stays behind.
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--force-reinstall", str(wheel)], check=True, timeout=120)
    return folder / "bin"
