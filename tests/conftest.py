"""What all tests share: one thread a process, the wheel, and one real stack a session, which runs from the wheel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running_stack import RunningStack
from tests.wheel import build_wheel, install_wheel

# Processes run side by side, so each gets one thread; those that a test starts inherit it. Read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# OpenCV reads and writes some formats by way of a temporary file, which it leaves behind where it fails. None is used
# here: without a folder to put that file, whoever tries fails.
os.environ["OPENCV_TEMP_PATH"] = os.path.join(os.devnull, "nowhere")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel."""
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment in which the wheel is installed and the checkout is not."""
    return install_wheel(wheel, tmp_path_factory.mktemp("environment"))


@pytest.fixture(scope="session")
def stack(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """A real Prefect server, Ray head and serving process that a session's tests share, started in an empty folder by the
    installed wheel, whose code runs flows and jobs. Nothing of it is left afterwards.
    """
    folder = tmp_path_factory.mktemp("empty")
    stack = RunningStack.start(tmp_path_factory.mktemp("stack"), program=installed / "piti", folder=folder)
    yield stack
    assert stack.stop() == [], "`piti down` left processes of the stack behind"
