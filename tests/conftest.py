"""What all tests share: one thread a process, and one real stack a session."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest

from tests.running_stack import RunningStack
from tests.wheel import build_wheel, install_wheel

# Processes run side by side, so each gets one thread; those that a test starts inherit it. Read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The same examples each time: a change is what makes a test fail, not the day.
hypothesis.settings.register_profile("same", derandomize=True, database=None)
hypothesis.settings.load_profile("same")
# OpenCV reads and writes some formats by way of a temporary file, which it leaves behind where it fails. None is used
# here: without a folder to put that file, whoever tries fails.
os.environ["OPENCV_TEMP_PATH"] = os.path.join(os.devnull, "nowhere")


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """A real Prefect server, Ray head and serving process that a session's tests share; nothing of it is left afterwards.

    The stack is the wheel's, started in an empty folder, as by a user who has no checkout.
    """
    folder = tmp_path_factory.mktemp("installed")
    programs = install_wheel(build_wheel(folder / "wheel"), folder / "environment")
    (folder / "empty").mkdir()
    stack = RunningStack.start(tmp_path_factory.mktemp("stack"), program=programs / "piti", folder=folder / "empty")
    yield stack
    assert stack.stop() == [], "`piti down` left processes of the stack behind"
